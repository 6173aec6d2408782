"""How many terminal cells a text takes."""

import unicodedata


def _char_cells(char):
    if unicodedata.combining(char) or unicodedata.category(char) in ("Cf", "Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def cells(text):
    """Number of cells; control characters are counted as one."""
    return sum(_char_cells(char) for char in text)


def cut(text, limit):
    """``(head, tail)``: the longest head of at most ``limit`` cells, and the rest.

    Combining marks stay with the character before them.
    """
    used = 0
    for index, char in enumerate(text):
        used += _char_cells(char)
        if used > limit:
            return text[:index], text[index:]
    return text, ""
