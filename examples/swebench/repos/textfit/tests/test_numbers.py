import unittest

from textfit import human_bytes, middle, ordinal, shorten, thousands


class NumbersTest(unittest.TestCase):
    def test_bytes(self):
        self.assertEqual(human_bytes(512), "512 B")
        self.assertEqual(human_bytes(1536), "1.5 KiB")
        self.assertEqual(human_bytes(-3 * 1024**2), "-3.0 MiB")

    def test_ordinals(self):
        self.assertEqual([ordinal(n) for n in (1, 2, 3, 4)], ["1st", "2nd", "3rd", "4th"])
        self.assertEqual([ordinal(n) for n in (10, 19, 20, 21)], ["10th", "19th", "20th", "21st"])

    def test_thousands(self):
        self.assertEqual(thousands(1234567), "1,234,567")
        self.assertEqual(thousands(-1234.5), "-1,234.5")
        self.assertEqual(thousands(12), "12")


class TruncateTest(unittest.TestCase):
    def test_short_text_is_unchanged(self):
        self.assertEqual(shorten("hello", 5), "hello")

    def test_cut_within_a_word(self):
        self.assertEqual(shorten("the quick brown fox", 14), "the quick...")

    def test_one_long_word(self):
        self.assertEqual(shorten("abcdefghijkl", 8), "abcde...")

    def test_middle(self):
        self.assertEqual(middle("abcdefghijkl", 9), "abc...jkl")
