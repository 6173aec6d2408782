"""Faults on demand: what an engine under trouble does to the requests that follow.

A fault is set with ``thunderagent engine --fault KIND[:FIELD=VALUE,...]`` or ``POST /fault`` with
``{"kind": KIND, FIELD: VALUE, ...}``; ``GET /fault`` lists those in force, ``DELETE /fault`` ends them all.

================ =================================================================================================
kind             what happens to an inference request
================ =================================================================================================
``refuse``       the connection is reset without an answer
``status``       answered ``status`` (500) at once, with an error object in vLLM's shape (503: its overload error)
``delay``        the first byte, also of the headers, comes ``seconds`` (1) late; the engine works meanwhile
``cut``          the connection is closed after ``after_chunks`` (0) events, without ``[DONE]``;
                 a reply that is not streamed breaks off half-way
``stall``        after ``after_chunks`` events nothing more is sent for ``seconds`` (None: until the client leaves)
``no_usage``     the reply carries no usage
``engine_death`` after ``after_chunks`` events: an error event and ``[DONE]`` under the 200; not streamed: 500
``unhealthy``    ``GET /health`` answers 503; inference is not affected
================ =================================================================================================

``requests`` limits a fault to that many requests (health checks for ``unhealthy``); without it the fault stays until
it is cleared. Different kinds add up on one request; of the same kind the one set first is used up first.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import attrs

__all__ = ["Fault", "FaultBoard", "FaultError", "FaultKind", "RequestFaults", "fault_from_mapping", "parse_fault"]


class FaultError(ValueError):
    """A fault that is not understood; the message says what and why."""


class FaultKind(str, Enum):
    """See the table in the module's docstring."""

    REFUSE = "refuse"
    STATUS = "status"
    DELAY = "delay"
    CUT = "cut"
    STALL = "stall"
    NO_USAGE = "no_usage"
    ENGINE_DEATH = "engine_death"
    UNHEALTHY = "unhealthy"


@attrs.frozen
class Fault:
    """One fault. ``requests`` None: until cleared; ``seconds`` None: for ever (stall) or 1 (delay)."""

    kind: FaultKind
    requests: int | None = None
    status: int = 500
    after_chunks: int = 0
    seconds: float | None = None


_FIELDS_OF: dict[FaultKind, frozenset[str]] = {
    FaultKind.REFUSE: frozenset(),
    FaultKind.STATUS: frozenset({"status"}),
    FaultKind.DELAY: frozenset({"seconds"}),
    FaultKind.CUT: frozenset({"after_chunks"}),
    FaultKind.STALL: frozenset({"after_chunks", "seconds"}),
    FaultKind.NO_USAGE: frozenset(),
    FaultKind.ENGINE_DEATH: frozenset({"after_chunks"}),
    FaultKind.UNHEALTHY: frozenset(),
}
_LEAST = {"requests": 1, "status": 400, "after_chunks": 0, "seconds": 0}


def fault_from_mapping(fields: Mapping[str, Any]) -> Fault:
    """A fault from its fields (JSON values, or texts from a command line). Raises FaultError."""
    known = ", ".join(kind.value for kind in FaultKind)
    try:
        kind = FaultKind(fields.get("kind"))
    except ValueError as error:
        raise FaultError(f"unknown fault kind {fields.get('kind')!r}; known are {known}") from error
    values: dict[str, Any] = {}
    for name, value in fields.items():
        if name == "kind":
            continue
        if name not in _FIELDS_OF[kind] | {"requests"}:
            takes = ", ".join(sorted(_FIELDS_OF[kind] | {"requests"}))
            raise FaultError(f"fault {kind.value} takes {takes}; not {name}")
        if value is not None:
            values[name] = _number(name, value)
    return Fault(kind, **values)


def _number(name: str, value: Any) -> int | float:
    convert: type[int] | type[float] = float if name == "seconds" else int
    try:
        if isinstance(value, bool):
            raise ValueError
        number = convert(value)
    except (TypeError, ValueError) as error:
        raise FaultError(f"fault field {name} takes a number, got {value!r}") from error
    if number < _LEAST[name] or (name == "status" and number > 599):
        raise FaultError(f"fault field {name} can't be {value}")
    return number


def parse_fault(text: str) -> Fault:
    """A fault from ``KIND[:FIELD=VALUE,...]``. Raises FaultError."""
    kind, _, rest = text.partition(":")
    fields: dict[str, Any] = {"kind": kind}
    for part in filter(None, rest.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise FaultError(f"fault {text!r}: expected FIELD=VALUE, got {part!r}")
        fields[name.strip()] = value.strip()
    return fault_from_mapping(fields)


@attrs.frozen
class RequestFaults:
    """The faults that one request meets, by kind."""

    by_kind: Mapping[FaultKind, Fault] = attrs.field(factory=dict)

    def get(self, kind: FaultKind) -> Fault | None:
        """The fault of this kind, or None."""
        return self.by_kind.get(kind)

    @property
    def count_chunks(self) -> bool:
        """Whether a stream must be written event by event."""
        return any(kind in self.by_kind for kind in (FaultKind.CUT, FaultKind.STALL, FaultKind.ENGINE_DEATH))


_NO_FAULTS = RequestFaults()


class FaultBoard:
    """The faults in force, in the order in which they were set."""

    def __init__(self, faults: tuple[Fault, ...] = ()) -> None:
        self._faults = list(faults)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Those in force, with the requests they still apply to."""
        return tuple(self._faults)

    def add(self, fault: Fault) -> None:
        """Set a fault."""
        self._faults.append(fault)

    def clear(self) -> None:
        """End all faults."""
        self._faults.clear()

    def take(self) -> RequestFaults:
        """The faults for an inference request, which uses them up by one."""
        if not self._faults:
            return _NO_FAULTS
        taken: dict[FaultKind, Fault] = {}
        for fault in self._faults:
            if fault.kind is not FaultKind.UNHEALTHY:
                taken.setdefault(fault.kind, fault)
        self._use_up(taken)
        return RequestFaults(taken)

    def healthy(self) -> bool:
        """Whether this health check passes."""
        for fault in self._faults:
            if fault.kind is FaultKind.UNHEALTHY:
                self._use_up({fault.kind: fault})
                return False
        return True

    def _use_up(self, taken: Mapping[FaultKind, Fault]) -> None:
        left: list[Fault] = []
        for fault in self._faults:
            if fault.requests is not None and taken.get(fault.kind) is fault:
                if fault.requests == 1:
                    continue
                fault = attrs.evolve(fault, requests=fault.requests - 1)
            left.append(fault)
        self._faults = left
