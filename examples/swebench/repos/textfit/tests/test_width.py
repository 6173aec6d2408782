import unittest

from textfit import cells, center, cut, justify, left, right


class WidthTest(unittest.TestCase):
    def test_ascii(self):
        self.assertEqual(cells("hello"), 5)

    def test_wide(self):
        self.assertEqual(cells("日本"), 4)

    def test_cut(self):
        self.assertEqual(cut("hello", 3), ("hel", "lo"))

    def test_cut_of_short_text(self):
        self.assertEqual(cut("hi", 3), ("hi", ""))

    def test_padding(self):
        self.assertEqual((left("a", 3), right("a", 3), center("a", 4)), ("a  ", "  a", " a  "))

    def test_too_long_is_unchanged(self):
        self.assertEqual(center("abcdef", 3), "abcdef")

    def test_justify_even(self):
        self.assertEqual(justify(["a", "b", "c"], 7), "a  b  c")

    def test_justify_one_word(self):
        self.assertEqual(justify(["a"], 7), "a")
