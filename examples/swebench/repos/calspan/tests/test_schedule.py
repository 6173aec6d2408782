import unittest

from calspan import Interval, Schedule, SlotTaken


class ScheduleTest(unittest.TestCase):
    def test_overlap_is_refused(self):
        schedule = Schedule()
        schedule.book("standup", 9, 11)
        with self.assertRaises(SlotTaken):
            schedule.book("review", 10, 12)

    def test_cancel(self):
        schedule = Schedule()
        schedule.book("standup", 9, 11)
        self.assertTrue(schedule.cancel("standup"))
        self.assertFalse(schedule.cancel("standup"))

    def test_free_and_first_free(self):
        schedule = Schedule(opening=Interval(8, 18))
        schedule.book("standup", 9, 11)
        self.assertEqual(list(schedule.free()), [Interval(8, 9), Interval(11, 18)])
        self.assertEqual(schedule.first_free(3), Interval(11, 14))

    def test_nothing_fits(self):
        schedule = Schedule(opening=Interval(8, 12))
        schedule.book("standup", 9, 11)
        self.assertIsNone(schedule.first_free(2))
