"""Markdown subset to HTML."""

from .blocks import parse_blocks
from .escape import escape, escape_attribute
from .inline import render_inline
from .render import render
from .tables import parse_table
from .toc import slugify, table_of_contents

__all__ = [
    "escape",
    "escape_attribute",
    "parse_blocks",
    "parse_table",
    "render",
    "render_inline",
    "slugify",
    "table_of_contents",
]
