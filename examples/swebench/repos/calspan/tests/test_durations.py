import unittest
from datetime import timedelta

from calspan import format_duration, parse_duration


class DurationTest(unittest.TestCase):
    def test_parse_several_units(self):
        self.assertEqual(parse_duration("1h 30m"), timedelta(seconds=5400))

    def test_parse_days_and_weeks(self):
        self.assertEqual(parse_duration("1w2d"), timedelta(days=9))

    def test_parse_refuses_rubbish(self):
        for text in ("", "abc", "12"):
            with self.subTest(text=text), self.assertRaises(ValueError):
                parse_duration(text)

    def test_format(self):
        self.assertEqual(format_duration(timedelta(hours=26, minutes=5)), "1d 2h 5m")

    def test_format_of_nothing(self):
        self.assertEqual(format_duration(timedelta()), "0s")
