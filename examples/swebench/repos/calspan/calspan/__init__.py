"""Intervals and calendars."""

from .calendar import Calendar, business_days, month_end
from .durations import format_duration, parse_duration
from .interval import Interval
from .intervalset import IntervalSet
from .schedule import Schedule, SlotTaken

__all__ = [
    "Calendar",
    "Interval",
    "IntervalSet",
    "Schedule",
    "SlotTaken",
    "business_days",
    "format_duration",
    "month_end",
    "parse_duration",
]
