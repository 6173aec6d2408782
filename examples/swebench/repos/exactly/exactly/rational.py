"""Rational numbers in lowest terms."""

from functools import total_ordering
from math import gcd


@total_ordering
class Rational:
    """``numerator / denominator`` with a positive denominator; immutable."""

    __slots__ = ("numerator", "denominator")

    def __init__(self, numerator, denominator=1):
        if denominator == 0:
            raise ZeroDivisionError("denominator is zero")
        if denominator < 0:
            numerator, denominator = -numerator, -denominator
        common = gcd(numerator, denominator)
        object.__setattr__(self, "numerator", numerator // common)
        object.__setattr__(self, "denominator", denominator // common)

    def __setattr__(self, name, value):
        raise AttributeError("a Rational does not change")

    @classmethod
    def parse(cls, text):
        """``3``, ``-3/4`` or ``0.25``."""
        text = text.strip()
        if "/" in text:
            numerator, denominator = text.split("/")
            return cls(int(numerator), int(denominator))
        whole, _, fraction = text.partition(".")
        return cls(int(whole + fraction), 10 ** len(fraction))

    def __repr__(self):
        return f"Rational({self.numerator}, {self.denominator})"

    def __str__(self):
        if self.denominator == 1:
            return str(self.numerator)
        return f"{self.numerator}/{self.denominator}"

    def __eq__(self, other):
        other = _as_rational(other)
        if other is None:
            return NotImplemented
        return (self.numerator, self.denominator) == (other.numerator, other.denominator)

    def __lt__(self, other):
        other = _as_rational(other)
        if other is None:
            return NotImplemented
        return self.numerator * other.denominator < other.numerator * self.denominator

    def __hash__(self):
        if self.denominator == 1:
            return hash(self.numerator)
        return hash((self.numerator, self.denominator))

    def __bool__(self):
        return self.numerator != 0

    def __add__(self, other):
        other = _as_rational(other)
        if other is None:
            return NotImplemented
        return Rational(
            self.numerator * other.denominator + other.numerator * self.denominator,
            self.denominator * other.denominator,
        )

    __radd__ = __add__

    def __neg__(self):
        return Rational(-self.numerator, self.denominator)

    def __sub__(self, other):
        other = _as_rational(other)
        return NotImplemented if other is None else self + -other

    def __rsub__(self, other):
        other = _as_rational(other)
        return NotImplemented if other is None else other - self

    def __mul__(self, other):
        other = _as_rational(other)
        if other is None:
            return NotImplemented
        return Rational(self.numerator * other.numerator, self.denominator * other.denominator)

    __rmul__ = __mul__

    def __truediv__(self, other):
        other = _as_rational(other)
        if other is None:
            return NotImplemented
        return Rational(self.numerator * other.denominator, self.denominator * other.numerator)

    def __rtruediv__(self, other):
        other = _as_rational(other)
        return NotImplemented if other is None else other / self

    def __pow__(self, exponent):
        if not isinstance(exponent, int):
            return NotImplemented
        if exponent < 0:
            return Rational(self.denominator, self.numerator) ** -exponent
        return Rational(self.numerator**exponent, self.denominator**exponent)

    def __floor__(self):
        return self.numerator // self.denominator

    def __round__(self):
        """The nearest integer; halves go to the even one."""
        doubled, rest = divmod(2 * self.numerator + self.denominator, 2 * self.denominator)
        if rest == 0 and doubled % 2:
            return doubled - 1
        return doubled


def _as_rational(value):
    if isinstance(value, Rational):
        return value
    return Rational(value) if isinstance(value, int) else None
