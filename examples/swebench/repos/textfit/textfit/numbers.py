"""Numbers as people read them."""

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def human_bytes(count, digits=1):
    """``1536`` -> ``1.5 KiB``; whole bytes have no fraction."""
    sign = "-" if count < 0 else ""
    value = abs(count)
    unit = 0
    while round(value, digits) >= 1024 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    if unit == 0:
        return f"{sign}{int(value)} B"
    return f"{sign}{value:.{digits}f} {_UNITS[unit]}"


def ordinal(number):
    """``1`` -> ``1st``, ``12`` -> ``12th``, ``23`` -> ``23rd``."""
    if 10 <= abs(number) % 100 <= 20:
        suffix = "th"
    else:
        suffix = {1: "st", 2: "nd", 3: "rd"}.get(abs(number) % 10, "th")
    return f"{number}{suffix}"


def thousands(number, separator=","):
    """Digits in groups of three; the fraction and the sign stay as they are."""
    whole, dot, fraction = str(number).partition(".")
    sign = "-" if whole.startswith("-") else ""
    digits = whole.lstrip("-")
    groups = []
    while len(digits) > 3:
        groups.insert(0, digits[-3:])
        digits = digits[:-3]
    groups.insert(0, digits)
    return sign + separator.join(groups) + dot + fraction
