"""Working days: weekends, holidays and month arithmetic."""

import calendar as _calendar
from datetime import date, timedelta

ONE_DAY = timedelta(days=1)


def month_end(day):
    """The last date of the month that ``day`` falls in."""
    return day.replace(day=_calendar.monthrange(day.year, day.month)[1])


def add_months(day, months):
    """``day`` moved by a number of months; a day the month does not have becomes its last one."""
    index = day.year * 12 + (day.month - 1) + months
    year, month = divmod(index, 12)
    month += 1
    last = _calendar.monthrange(year, month)[1]
    return date(year, month, min(day.day, last))


class Calendar:
    """A working calendar.

    ``weekend`` holds the weekday numbers that are free (Monday is 0); ``holidays`` the free dates.
    """

    def __init__(self, holidays=(), weekend=(5, 6)):
        self.holidays = set(holidays)
        self.weekend = frozenset(weekend)
        if len(self.weekend) >= 7:
            raise ValueError("a calendar needs at least one working weekday")

    def add_holiday(self, day):
        self.holidays.add(day)

    def is_working_day(self, day):
        return day.weekday() not in self.weekend and day not in self.holidays

    def next_working_day(self, day):
        """The first working day after ``day``."""
        day += ONE_DAY
        while not self.is_working_day(day):
            day += ONE_DAY
        return day

    def previous_working_day(self, day):
        """The last working day before ``day``."""
        day -= ONE_DAY
        while not self.is_working_day(day):
            day -= ONE_DAY
        return day

    def roll(self, day, convention="following"):
        """Move a free day to a working one.

        ``following`` goes forward, ``preceding`` back, ``modified`` goes forward unless that leaves
        the month, and back then.
        """
        if self.is_working_day(day):
            return day
        if convention == "preceding":
            return self.previous_working_day(day)
        rolled = self.next_working_day(day)
        if convention == "following":
            return rolled
        if convention == "modified":
            if (rolled.year, rolled.month) != (day.year, day.month):
                return self.previous_working_day(day)
            return rolled
        raise ValueError(f"unknown convention {convention!r}")

    def shift(self, day, count):
        """The working day ``count`` working days after ``day`` (before, when negative)."""
        step = self.next_working_day if count >= 0 else self.previous_working_day
        for _ in range(abs(count)):
            day = step(day)
        return day


def business_days(first, last, calendar=None):
    """Number of working days from ``first`` to ``last``, both counted; negative when reversed."""
    calendar = calendar or Calendar()
    if last < first:
        return -business_days(last, first, calendar)
    count = 0
    day = first
    while day <= last:
        count += calendar.is_working_day(day)
        day += ONE_DAY
    return count
