"""Shorten text to a number of cells."""

from .width import cells, cut


def shorten(text, limit, ellipsis="..."):
    """At most ``limit`` cells; what is too long ends with the ellipsis, cut at a word if there is one."""
    if cells(text) <= limit:
        return text
    room = limit - cells(ellipsis)
    if room <= 0:
        return cut(ellipsis, limit)[0]
    head, tail = cut(text, room)
    if tail and not tail[0].isspace() and " " in head.strip():
        head = head[: head.rindex(" ")]
    return head.rstrip() + ellipsis


def middle(text, limit, ellipsis="..."):
    """At most ``limit`` cells with the ellipsis in the middle; for paths and hashes.

    The end gets the odd cell, since file names differ at their ends.
    """
    if cells(text) <= limit:
        return text
    room = limit - cells(ellipsis)
    if room <= 0:
        return cut(ellipsis, limit)[0]
    head = cut(text, room // 2)[0]
    tail = cut(text[::-1], room - room // 2)[0][::-1]
    return head + ellipsis + tail
