"""What differs from what the router believes or expects, out of its policy's sight: for studies of robustness."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen

from thunderagent.errors import ConfigError

__all__ = ["Perturbation", "changed_of", "parse_perturbation"]

_MOST = 1e6


@frozen
class Perturbation:
    """By default what every run has. Raises ConfigError for what cannot be."""

    estimate: float = 0.15
    """A ratio: bytes per token of a program lie within this of 4, up and down, spread evenly over programs. The first
    estimate of its tokens is as far off."""
    capacity: float = 0.0
    """The router is told a KV capacity so much larger than the engines have, as a ratio; below 0: smaller."""
    metrics_delay_seconds: float = 0.0
    """What backends say of themselves is that old when it is told."""
    has_metrics: bool = True
    """Whether they say anything but their capacity."""
    burst_programs: int = 0
    """New programs that begin at once at half of the horizon, a session each."""
    tools: float | None = None
    """One tool call of a hundred takes so many times the median tool time; None: none does."""

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.estimate < 1:
            raise ConfigError(f"perturbation estimate is at least 0 and below 1, got {self.estimate:g}")
        if not -1 < self.capacity <= 10:
            raise ConfigError(f"perturbation capacity is above -1 and at most 10, got {self.capacity:g}")
        if not 0 <= self.metrics_delay_seconds < math.inf:
            raise ConfigError(
                f"perturbation metrics-delay is a number of seconds of at least 0, got {self.metrics_delay_seconds:g}"
            )
        if not 0 <= self.burst_programs <= _MOST:
            raise ConfigError(f"perturbation burst is between 0 and {_MOST:,.0f} programs, got {self.burst_programs}")
        if self.tools is not None and not 0 < self.tools <= _MOST:
            raise ConfigError(f"perturbation tools is above 0 and at most {_MOST:,.0f}, got {self.tools:g}")
        if self.metrics_delay_seconds and not self.has_metrics:
            raise ConfigError("perturbations metrics-delay and metrics=off: without metrics nothing is late")

    def told_capacity(self, tokens: int) -> int:
        """What the router is told of an engine that has so many KV tokens. At least 1."""
        return max(1, round(tokens * (1.0 + self.capacity)))


def _off(value: str) -> bool:
    if value not in ("on", "off"):
        raise ValueError
    return value == "on"


_READ: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "estimate": ("estimate", float, "a ratio"),
    "capacity": ("capacity", float, "a ratio"),
    "metrics-delay": ("metrics_delay_seconds", float, "seconds"),
    "metrics": ("has_metrics", _off, "on or off"),
    "burst": ("burst_programs", int, "a number of programs"),
    "tools": ("tools", float, "a factor"),
}
"""By name: its field, how a value is read, and what it is."""


def changed_of(perturbation: Perturbation) -> list[str]:
    """NAME=VALUE of each that is not as in every run."""
    plain, found = Perturbation(), []
    for name, (field, _, _) in _READ.items():
        value = getattr(perturbation, field)
        if value != getattr(plain, field):
            found.append(f"{name}=off" if value is False else f"{name}={value:g}")
    return found


def parse_perturbation(texts: Sequence[str]) -> Perturbation:
    """Of ``NAME=VALUE`` each. Raises ConfigError for an unknown name, one given twice, and a bad value."""
    given: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in _READ:
            raise ConfigError(f"--perturb {text}: give NAME=VALUE, NAME one of {', '.join(_READ)}")
        field, read, what = _READ[name]
        if field in given:
            raise ConfigError(f"--perturb {text}: {name} is given twice")
        try:
            given[field] = read(value)
        except ValueError:
            raise ConfigError(f"--perturb {text}: {value!r} is not {what}") from None
    return Perturbation(**given)
