"""Replicas that die, come back and join: what is set before anything runs."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from attrs import frozen

from thunderagent.errors import ConfigError

__all__ = [
    "MOST_REPLICAS",
    "Addition",
    "Failure",
    "Incident",
    "check_incidents",
    "in_order",
    "parse_addition",
    "parse_failure",
]

MOST_REPLICAS = 10_000
"""More than anyone has, and what still runs."""

_SECONDS = r"(\d+(?:\.\d+)?)"
_FAILURE = re.compile(rf"(\d+)@{_SECONDS}(?:-{_SECONDS})?", re.ASCII)
_ADDITION = re.compile(rf"(\d+)@{_SECONDS}", re.ASCII)


@frozen
class Failure:
    """A replica, counted from 0, dies at ``at`` and is back with an empty cache at ``until``; None: never."""

    replica: int
    at: float
    until: float | None = None

    def __str__(self) -> str:
        back = "" if self.until is None else f"-{self.until:g}"
        return f"{self.replica}@{self.at:g}{back}"


@frozen
class Addition:
    """So many replicas more join at ``at``; they are counted on."""

    replicas: int
    at: float

    def __str__(self) -> str:
        return f"{self.replicas}@{self.at:g}"


Incident = Failure | Addition


def parse_failure(text: str) -> Failure:
    """``REPLICA@SECONDS[-SECONDS]``. Raises ConfigError for what is not of this form."""
    found = _FAILURE.fullmatch(text)
    if found is None:
        raise ConfigError(f"--fail {text}: give REPLICA@SECONDS or REPLICA@SECONDS-SECONDS, replicas counted from 0")
    replica, at, until = found.groups()
    return Failure(int(replica), float(at), None if until is None else float(until))


def parse_addition(text: str) -> Addition:
    """``N@SECONDS``. Raises ConfigError for what is not of this form."""
    found = _ADDITION.fullmatch(text)
    if found is None:
        raise ConfigError(f"--add {text}: give N@SECONDS, N replicas that join then")
    return Addition(int(found[1]), float(found[2]))


def in_order(incidents: Sequence[Incident]) -> list[Incident]:
    """By time; who joins at the time of a failure does so before it."""
    return sorted(incidents, key=lambda incident: (incident.at, isinstance(incident, Failure)))


def check_incidents(incidents: Sequence[Incident], replicas: int) -> None:
    """Can they happen to so many replicas? Raises ConfigError where not."""
    back_at: dict[int, float] = {}
    for incident in in_order(incidents):
        if not 0 <= incident.at < math.inf:
            raise ConfigError(f"replicas fail and join at 0 s or later, got {incident.at:g}")
        if isinstance(incident, Addition):
            if incident.replicas < 1:
                raise ConfigError(f"--add {incident}: at least 1 replica joins")
            replicas += incident.replicas
            if replicas > MOST_REPLICAS:
                raise ConfigError(f"--add {incident}: there can be {MOST_REPLICAS:,} replicas")
            continue
        if not 0 <= incident.replica < replicas:
            there = "is only replica 0" if replicas == 1 else f"are replicas 0 to {replicas - 1}"
            raise ConfigError(f"--fail {incident}: there {there} then")
        if incident.until is not None and not incident.at < incident.until < math.inf:
            raise ConfigError(f"--fail {incident}: the replica must be back after it died")
        if incident.at <= back_at.get(incident.replica, -1.0):
            raise ConfigError(f"--fail {incident}: replica {incident.replica} is dead then already")
        back_at[incident.replica] = math.inf if incident.until is None else incident.until
