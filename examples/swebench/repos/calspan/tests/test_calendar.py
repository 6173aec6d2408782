import unittest
from datetime import date

from calspan import Calendar, business_days, month_end
from calspan.calendar import add_months


class CalendarTest(unittest.TestCase):
    def setUp(self):
        self.calendar = Calendar(holidays=[date(2024, 5, 1)])

    def test_weekend_and_holiday_are_free(self):
        self.assertFalse(self.calendar.is_working_day(date(2024, 5, 4)))
        self.assertFalse(self.calendar.is_working_day(date(2024, 5, 1)))
        self.assertTrue(self.calendar.is_working_day(date(2024, 5, 2)))

    def test_next_working_day_skips_the_weekend(self):
        self.assertEqual(self.calendar.next_working_day(date(2024, 5, 3)), date(2024, 5, 6))

    def test_previous_working_day(self):
        self.assertEqual(self.calendar.previous_working_day(date(2024, 5, 6)), date(2024, 5, 3))

    def test_roll_following(self):
        self.assertEqual(self.calendar.roll(date(2024, 5, 1)), date(2024, 5, 2))

    def test_roll_keeps_a_working_day(self):
        self.assertEqual(self.calendar.roll(date(2024, 5, 2), "modified"), date(2024, 5, 2))

    def test_unknown_convention(self):
        with self.assertRaises(ValueError):
            self.calendar.roll(date(2024, 5, 4), "sideways")

    def test_shift(self):
        self.assertEqual(self.calendar.shift(date(2024, 4, 30), 2), date(2024, 5, 3))

    def test_month_end_of_a_leap_february(self):
        self.assertEqual(month_end(date(2024, 2, 3)), date(2024, 2, 29))

    def test_add_months_within_the_year(self):
        self.assertEqual(add_months(date(2024, 1, 15), 3), date(2024, 4, 15))

    def test_add_months_clips_the_day(self):
        self.assertEqual(add_months(date(2023, 1, 31), 1), date(2023, 2, 28))

    def test_business_days_over_a_weekend(self):
        self.assertEqual(business_days(date(2024, 5, 3), date(2024, 5, 7)), 3)


if __name__ == "__main__":
    unittest.main()
