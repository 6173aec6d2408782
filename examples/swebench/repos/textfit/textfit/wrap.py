"""Paragraphs into lines."""

from .width import cells, cut


def wrap(text, width, initial="", subsequent="", break_long=True):
    """Lines of at most ``width`` cells, broken at white space.

    ``initial`` and ``subsequent`` are put in front of the first line and of the others and count as
    part of the width. Words that are too long are broken unless ``break_long`` is off. An empty text
    gives no lines.
    """
    if width < 1:
        raise ValueError(f"width has to be at least 1, not {width}")
    lines = []
    current = ""
    prefix = initial
    for word in text.split():
        room = width - cells(prefix)
        candidate = f"{current} {word}" if current else word
        if cells(candidate) <= room:
            current = candidate
            continue
        if current:
            lines.append(prefix + current)
            prefix = subsequent
            room = width - cells(prefix)
            current = ""
        while break_long and cells(word) > room:
            head, word = cut(word, max(room, 1))
            if not head:
                head, word = word[0], word[1:]
            lines.append(prefix + head)
            prefix = subsequent
            room = width - cells(prefix)
        current = word
    if current:
        lines.append(prefix + current)
    return lines


def indent(text, prefix, empty=False):
    """``prefix`` in front of each line; lines without text only when ``empty`` is set."""
    return "".join(
        prefix + line if empty or line.strip() else line for line in text.splitlines(keepends=True)
    )


def dedent(text):
    """Remove the white space that all lines with text begin with."""
    lines = text.splitlines(keepends=True)
    margins = [line[: len(line) - len(line.lstrip())] for line in lines if line.strip()]
    if not margins:
        return "".join(line.lstrip(" \t") for line in lines)
    margin = margins[0]
    for other in margins[1:]:
        while not other.startswith(margin):
            margin = margin[:-1]
    return "".join(line[len(margin) :] if line.strip() else line.lstrip(" \t") for line in lines)
