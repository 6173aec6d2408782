import unittest

from textfit import Table


class TableTest(unittest.TestCase):
    def test_alignment(self):
        table = Table(["name", "size"], align=["left", "right"])
        table.add("a", 5)
        table.add("bcdefg", 1234)
        self.assertEqual(
            table.lines(), ["name    size", "------  ----", "a          5", "bcdefg  1234"]
        )

    def test_wrong_number_of_cells(self):
        with self.assertRaises(ValueError):
            Table(["a", "b"]).add(1)

    def test_none_is_empty(self):
        table = Table(["a"])
        table.add(None)
        self.assertEqual(table.rows, [[""]])

    def test_cells_are_cut(self):
        table = Table(["text"], max_width=8)
        table.add("abcdefghijkl")
        self.assertEqual(table.lines()[2], "abcde...")
