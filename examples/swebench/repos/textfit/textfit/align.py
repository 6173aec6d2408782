"""Pad text to a number of cells."""

from .width import cells


def left(text, width, fill=" "):
    """The text, then fill; unchanged when it is too long."""
    return text + fill * max(0, width - cells(text))


def right(text, width, fill=" "):
    """Fill, then the text."""
    return fill * max(0, width - cells(text)) + text


def center(text, width, fill=" "):
    """Fill on both sides; the right one gets the odd cell."""
    missing = max(0, width - cells(text))
    before = missing // 2
    return fill * before + text + fill * (missing - before)


def justify(words, width):
    """One line of exactly ``width`` cells: extra blanks go to the gaps from the left.

    A single word, or words that do not fit, come back joined by one blank.
    """
    words = list(words)
    line = " ".join(words)
    extra = width - cells(line)
    if len(words) < 2 or extra <= 0:
        return line
    gaps = len(words) - 1
    each, odd = divmod(extra, gaps)
    parts = []
    for index, word in enumerate(words[:-1]):
        parts.append(word + " " * (1 + each + (1 if index < odd else 0)))
    return "".join(parts) + words[-1]
