"""Blocks: the lines of a document as (kind, content) pairs."""

import re

from .tables import is_table, parse_table

_HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*#*\s*$")
_BULLET = re.compile(r"\s{0,3}[-*+]\s+(.*)$")
_NUMBER = re.compile(r"\s{0,3}(\d+)[.)]\s+(.*)$")
_FENCE = re.compile(r"(`{3,}|~{3,})\s*([\w+-]*)\s*$")


def parse_blocks(text):
    """A list of blocks.

    ``("heading", level, text)``, ``("paragraph", text)``, ``("bullets", items)``,
    ``("numbers", start, items)``, ``("quote", blocks)``, ``("code", language, text)``,
    ``("table", table)``, ``("rule",)``.
    """
    lines = text.expandtabs(4).splitlines()
    blocks = []
    index = 0
    while index < len(lines):
        line = lines[index]
        if not line.strip():
            index += 1
        elif _FENCE.match(line):
            index = _code(lines, index, blocks)
        elif _HEADING.match(line):
            marks, title = _HEADING.match(line).groups()
            blocks.append(("heading", len(marks), title))
            index += 1
        elif re.fullmatch(r"\s*([-*_])(\s*\1){2,}\s*", line):
            blocks.append(("rule",))
            index += 1
        elif line.startswith(">"):
            index = _quote(lines, index, blocks)
        elif _BULLET.match(line):
            index = _list(lines, index, _BULLET, blocks)
        elif _NUMBER.match(line):
            index = _list(lines, index, _NUMBER, blocks)
        elif is_table(lines, index):
            table, index = parse_table(lines, index)
            blocks.append(("table", table))
        else:
            index = _paragraph(lines, index, blocks)
    return blocks


def _code(lines, index, blocks):
    fence, language = _FENCE.match(lines[index]).groups()
    body = []
    index += 1
    while index < len(lines):
        stripped = lines[index].strip()
        if stripped.startswith(fence) and set(stripped) == {fence[0]}:
            index += 1
            break
        body.append(lines[index])
        index += 1
    blocks.append(("code", language, "\n".join(body)))
    return index


def _quote(lines, index, blocks):
    inner = []
    while index < len(lines) and lines[index].startswith(">"):
        inner.append(lines[index][1:].removeprefix(" "))
        index += 1
    blocks.append(("quote", parse_blocks("\n".join(inner))))
    return index


def _list(lines, index, pattern, blocks):
    items = []
    start = 1
    while index < len(lines):
        match = pattern.match(lines[index])
        if match:
            if not items and pattern is _NUMBER:
                start = int(match.group(1))
            items.append(match.groups()[-1])
        elif lines[index].startswith("  ") and lines[index].strip():
            items[-1] += " " + lines[index].strip()
        else:
            break
        index += 1
    if pattern is _NUMBER:
        blocks.append(("numbers", start, items))
    else:
        blocks.append(("bullets", items))
    return index


def _paragraph(lines, index, blocks):
    body = []
    while index < len(lines) and lines[index].strip():
        line = lines[index]
        if body and (line.startswith((">", "#", "```", "~~~")) or _BULLET.match(line)):
            break
        body.append(line.strip())
        index += 1
    blocks.append(("paragraph", " ".join(body)))
    return index
