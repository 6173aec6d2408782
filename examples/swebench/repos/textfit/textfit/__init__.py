"""Text in columns."""

from .align import center, justify, left, right
from .numbers import human_bytes, ordinal, thousands
from .table import Table
from .truncate import middle, shorten
from .width import cells, cut
from .wrap import dedent, indent, wrap

__all__ = [
    "Table",
    "cells",
    "center",
    "cut",
    "dedent",
    "human_bytes",
    "indent",
    "justify",
    "left",
    "middle",
    "ordinal",
    "right",
    "shorten",
    "thousands",
    "wrap",
]
