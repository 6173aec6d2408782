"""Anchors and the table of contents."""

import re

from .escape import escape
from .inline import plain_text


def slugify(text, taken=None):
    """An anchor for a heading: lower case, words joined by ``-``.

    ``taken`` is a set of anchors in use; the new one is added to it and differs from all in it.
    """
    words = re.findall(r"\w+", plain_text(text).lower())
    base = "-".join(words) or "section"
    if taken is None:
        return base
    slug = base
    number = 1
    while slug in taken:
        number += 1
        slug = f"{base}-{number}"
    taken.add(slug)
    return slug


def table_of_contents(headings):
    """Nested lists for ``(level, text, slug)`` headings; an empty string for none."""
    parts = []
    depths = []
    for level, text, slug in headings:
        while depths and depths[-1] > level:
            parts.append("</li></ul>")
            depths.pop()
        if depths and depths[-1] == level:
            parts.append("</li>")
        else:
            parts.append("<ul>")
            depths.append(level)
        parts.append(f'<li><a href="#{slug}">{escape(plain_text(text))}</a>')
    parts.append("</li></ul>" * len(depths))
    return "".join(parts)
