import unittest

from textfit import dedent, indent, wrap


class WrapTest(unittest.TestCase):
    def test_words_are_kept(self):
        self.assertEqual(wrap("the quick brown fox", 12), ["the quick", "brown fox"])

    def test_long_word_is_broken(self):
        self.assertEqual(wrap("a abcdefghijk", 5), ["a", "abcde", "fghij", "k"])

    def test_long_word_is_kept(self):
        self.assertEqual(wrap("a abcdefghijk b", 5, break_long=False), ["a", "abcdefghijk", "b"])

    def test_nothing(self):
        self.assertEqual(wrap("   ", 5), [])

    def test_bad_width(self):
        with self.assertRaises(ValueError):
            wrap("a", 0)

    def test_indent_skips_empty_lines(self):
        self.assertEqual(indent("a\n\nb\n", "> "), "> a\n\n> b\n")

    def test_dedent(self):
        self.assertEqual(dedent("    a\n      b\n"), "a\n  b\n")
