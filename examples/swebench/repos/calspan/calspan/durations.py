"""Durations as people write them: ``1h 30m``, ``2d``, ``90s``."""

import re
from datetime import timedelta

UNITS = {"w": 604800, "d": 86400, "h": 3600, "m": 60, "s": 1}
_TOKEN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)")


def parse_duration(text):
    """``1h 30m`` -> ``timedelta(seconds=5400)``. A leading minus negates the whole duration."""
    text = text.strip()
    negative = text.startswith("-")
    rest = text[1:].lstrip() if negative else text
    if not rest:
        raise ValueError(f"not a duration: {text!r}")
    seconds = 0.0
    position = 0
    while position < len(rest):
        match = _TOKEN.match(rest, position)
        if match is None:
            raise ValueError(f"not a duration: {text!r} (at {rest[position:]!r})")
        number, unit = match.groups()
        unit = unit.lower()
        if unit not in UNITS:
            raise ValueError(f"unknown unit {unit!r} in {text!r}")
        seconds += float(number) * UNITS[unit]
        position = match.end()
    return timedelta(seconds=-seconds if negative else seconds)


def format_duration(delta, units="wdhms"):
    """The shortest spelling that ``parse_duration`` reads back; ``0s`` for nothing."""
    seconds = int(delta.total_seconds())
    sign = "-" if seconds < 0 else ""
    seconds = abs(seconds)
    parts = []
    for unit in units:
        count, seconds = divmod(seconds, UNITS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return sign + (" ".join(parts) or "0s")
