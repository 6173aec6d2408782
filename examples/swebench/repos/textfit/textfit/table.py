"""Plain text tables."""

from .align import center, left, right
from .truncate import shorten
from .width import cells

_ALIGN = {"left": left, "right": right, "center": center}


class Table:
    """Rows of cells under a header.

    ``align`` is one of left, right, center per column (left by default); ``max_width`` cuts the cells of
    all columns.
    """

    def __init__(self, header, align=None, max_width=None):
        self.header = [str(cell) for cell in header]
        self.align = list(align) if align else ["left"] * len(self.header)
        if len(self.align) != len(self.header):
            raise ValueError("one alignment per column, please")
        self.max_width = max_width
        self.rows = []

    def add(self, *row):
        """Append a row; it has to have as many cells as the header."""
        if len(row) != len(self.header):
            raise ValueError(f"{len(row)} cells for {len(self.header)} columns")
        self.rows.append(["" if cell is None else str(cell) for cell in row])

    def _cut(self, text):
        return text if self.max_width is None else shorten(text, self.max_width)

    def widths(self):
        """Cells of each column."""
        rows = [self.header, *self.rows]
        return [max(cells(self._cut(row[column])) for row in rows) for column in range(len(self.header))]

    def lines(self):
        """The header, a rule and the rows, without trailing blanks."""
        widths = self.widths()

        def line(row):
            parts = [
                _ALIGN[align](self._cut(text), width)
                for text, align, width in zip(row, self.align, widths)
            ]
            return "  ".join(parts).rstrip()

        rule = "  ".join("-" * width for width in widths)
        return [line(self.header), rule, *(line(row) for row in self.rows)]

    def __str__(self):
        return "\n".join(self.lines())
