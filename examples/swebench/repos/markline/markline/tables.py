"""Pipe tables."""

import re

_RULE_CELL = re.compile(r":?-+:?$")


def split_row(line):
    """The cells of a row; a pipe after a backslash belongs to its cell."""
    line = line.strip()
    if line.startswith("|"):
        line = line[1:]
    if line.endswith("|") and not line.endswith("\\|"):
        line = line[:-1]
    cells = re.split(r"(?<!\\)\|", line)
    return [cell.strip().replace("\\|", "|") for cell in cells]


def is_table(lines, index):
    """True when a header row and a rule start at ``index``."""
    if index + 1 >= len(lines) or "|" not in lines[index]:
        return False
    rule = split_row(lines[index + 1])
    return len(rule) == len(split_row(lines[index])) and all(_RULE_CELL.match(cell) for cell in rule)


def _alignment(cell):
    left, right = cell.startswith(":"), cell.endswith(":")
    if left and right:
        return "center"
    if right:
        return "right"
    return "left" if left else None


def parse_table(lines, index):
    """(table, next index); a table is a dict of ``header``, ``align`` and ``rows``.

    Short rows are filled up with empty cells, long ones are cut.
    """
    header = split_row(lines[index])
    align = [_alignment(cell) for cell in split_row(lines[index + 1])]
    index += 2
    rows = []
    while index < len(lines) and "|" in lines[index]:
        cells = split_row(lines[index])[: len(header)]
        rows.append(cells + [""] * (len(header) - len(cells)))
        index += 1
    return {"header": header, "align": align, "rows": rows}, index
