"""The published resume of ``pause-resume``: who is let in by score (eq. 10), and where (its code of March 2026)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import islice
from typing import NamedTuple

from attrs import define, field

from policies.pause_resume_places import asks
from policies.pause_resume_ranks import BEHIND, published_rank
from policies.pause_resume_rooms import Rooms
from thunderagent.policy import (
    Admit,
    AdmitTurn,
    BackendView,
    ClusterView,
    ProgramView,
    TurnView,
    WaiterView,
)

__all__ = ["resume_published"]

_LOOK_AT = 256
"""Paused programs without a turn that are looked at: they ask for nothing yet."""

_Backends = tuple[BackendView, ...]


class _Candidate(NamedTuple):
    """A program or a turn that asks for a place, or a paused program without a turn."""

    need_tokens: int
    turn: TurnView | None
    program: ProgramView | None
    homes: _Backends
    """Where a program without a turn may go."""

    def could_take(self, backend: BackendView) -> bool:
        """Whether it may run there and would fit if it had the backend for itself."""
        if self.turn is None:
            is_open, tokens = backend in self.homes, self.need_tokens
        else:
            is_open, tokens = self.turn.may_run_on(backend), self.turn.prompt_tokens
        return is_open and (backend.capacity_tokens is None or tokens <= backend.capacity_tokens)


def resume_published(cluster: ClusterView, rooms: Rooms) -> Iterator[Admit | AdmitTurn]:
    """Pick by score what fits all rooms together, place the largest first where the most room is.

    Once for each set of backends that serve the same, so that nobody's tokens count against room that is of no use
    to it. Where such sets overlap, the one whose first waits for longest goes first.
    """
    idle = _Idle(cluster)
    for backends, lines in _groups(cluster, idle).items():
        picked = _pick(cluster, rooms, backends, _classes(lines, idle.on(backends)))
        picked.sort(key=lambda candidate: -candidate.need_tokens)
        for candidate in picked:
            fitting = rooms.roomiest_first(cluster, candidate.need_tokens)
            chosen = next((backend for backend in fitting if candidate.could_take(backend)), None)
            if chosen is None:
                continue
            rooms.take(chosen, candidate.need_tokens)
            if candidate.program is not None:
                yield Admit(candidate.program.id, chosen.id)
            elif candidate.turn is not None:
                yield AdmitTurn(candidate.turn.id, chosen.id)


def _groups(cluster: ClusterView, idle: _Idle) -> dict[_Backends, list[Sequence[WaiterView]]]:
    """The lines of those that ask for a place by the backends that serve them, and the homes of the idle."""
    groups: dict[_Backends, list[Sequence[WaiterView]]] = {}
    for line in cluster.waiting_lines():
        if asks(line[0]):
            groups.setdefault(tuple(line[0].turn.eligible_backends), []).append(line)
    for backends in idle.homes():
        groups.setdefault(backends, [])
    return groups


def _pick(
    cluster: ClusterView, rooms: Rooms, backends: _Backends, classes: Iterator[Iterator[_Candidate]]
) -> list[_Candidate]:
    """Those whose running sum fits the sum of the backends' rooms; who would fit beside nobody may have an empty
    backend.

    Within a class the tokens ascend, so that the first who does not fit ends it.
    """
    total_tokens, buffer_tokens = rooms.total(backends), rooms.settings.buffer_tokens
    picked: list[_Candidate] = []
    for candidates in classes:
        for candidate in candidates:
            cost_tokens = candidate.need_tokens + buffer_tokens
            if cost_tokens > total_tokens and (picked or not any(map(candidate.could_take, rooms.empty(cluster)))):
                break
            total_tokens -= cost_tokens
            picked.append(candidate)
    return picked


def _classes(lines: Sequence[Sequence[WaiterView]], idle: Iterator[_Candidate]) -> Iterator[Iterator[_Candidate]]:
    """Waiting after more than one step, waiting in the first, and paused while the agent is in a tool."""
    programs = [line for line in lines if line[0].program is not None]
    starts = [bisect_left(line, BEHIND, key=_score) for line in programs]
    known = [islice(line, start) for line, start in zip(programs, starts, strict=True)]
    new = [_from(line, start) for line, start in zip(programs, starts, strict=True)]
    yield map(_waiting, merge(*known, key=_score))
    yield map(_waiting, merge(*new, key=_score))
    yield from (map(_waiting, line) for line in lines if line[0].program is None)
    yield idle


def _score(waiter: WaiterView) -> float:
    assert waiter.program is not None  # turns without one have no score
    return published_rank(waiter.program, waiter.need_tokens)


def _waiting(waiter: WaiterView) -> _Candidate:
    return _Candidate(waiter.need_tokens, waiter.turn, waiter.program, ())


def _from(line: Sequence[WaiterView], start: int) -> Iterator[WaiterView]:
    return (line[index] for index in range(start, len(line)))


@define(eq=False)
class _Idle:
    """Paused programs without a turn, the smallest of them, and where they may go: where their model is served."""

    cluster: ClusterView
    _homes: dict[str | None, _Backends] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        for program in self._programs():
            model = program.model
            if model not in self._homes:
                self._homes[model] = tuple(backend for backend in self.cluster.backends if backend.serves(model))

    def _programs(self) -> Iterator[ProgramView]:
        return islice(self.cluster.paused_idle_smallest_first(), _LOOK_AT)

    def homes(self) -> Iterator[_Backends]:
        """Each set of backends that some of them may go to."""
        return (backends for backends in self._homes.values() if backends)

    def on(self, backends: _Backends) -> Iterator[_Candidate]:
        """Those that may go to these, by the tokens that they need."""
        for program in self._programs():
            if self._homes[program.model] == backends:
                yield _Candidate(program.need_tokens, None, program, backends)
