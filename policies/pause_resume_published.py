"""The published resume of ``pause-resume``: who is let in by score (eq. 10), and where (its code of March 2026)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import islice
from typing import NamedTuple

from policies.pause_resume_places import asks
from policies.pause_resume_rooms import Rooms
from thunderagent.policy import (
    Admit,
    AdmitTurn,
    BackendView,
    ClusterView,
    Decision,
    ProgramView,
    TurnView,
    WaiterView,
)

__all__ = ["published_rank", "resume_published"]

_NEW = 2.0**40
"""Added to the rank of programs in their first turn: more than any number of tokens."""


def published_rank(waiter: WaiterView) -> float:
    """Programs after their first turn before new ones, the smallest first; turns without a program by age."""
    if waiter.program is None:
        return waiter.since
    return waiter.need_tokens + (0.0 if waiter.program.turns_finished else _NEW)


class _Candidate(NamedTuple):
    """A program or a turn that asks for a place, or a paused program without a turn."""

    need_tokens: int
    turn: TurnView | None
    program: ProgramView | None

    def could_take(self, backend: BackendView) -> bool:
        """Whether it may run there and would fit if it had the backend for itself."""
        if self.turn is not None and not self.turn.may_run_on(backend):
            return False
        tokens = self.need_tokens if self.turn is None else self.turn.prompt_tokens
        return backend.capacity_tokens is None or tokens <= backend.capacity_tokens


def resume_published(cluster: ClusterView, rooms: Rooms) -> Iterator[Decision]:
    """Pick by score what fits all rooms together, place the largest first where the most room is."""
    picked = _pick(cluster, rooms)
    picked.sort(key=lambda candidate: -candidate.need_tokens)
    for candidate in picked:
        open_backends = (backend for backend in rooms.roomiest_first(cluster) if candidate.could_take(backend))
        chosen = next(open_backends, None)
        if chosen is None or not rooms.fits(chosen, candidate.need_tokens):
            continue
        rooms.take(chosen, candidate.need_tokens)
        if candidate.program is not None:
            yield Admit(candidate.program.id, chosen.id)
        elif candidate.turn is not None:
            yield AdmitTurn(candidate.turn.id, chosen.id)


def _pick(cluster: ClusterView, rooms: Rooms) -> list[_Candidate]:
    """Those whose running sum fits the sum of all rooms; who would fit beside nobody may have an empty backend.

    Within a class the tokens ascend, so that the first who does not fit ends it.
    """
    total_tokens, buffer_tokens = rooms.total(), rooms.settings.buffer_tokens
    picked: list[_Candidate] = []
    for candidates in _classes(cluster):
        for candidate in candidates:
            cost_tokens = candidate.need_tokens + buffer_tokens
            if cost_tokens > total_tokens and (picked or not any(map(candidate.could_take, rooms.empty(cluster)))):
                break
            total_tokens -= cost_tokens
            picked.append(candidate)
    return picked


def _classes(cluster: ClusterView) -> Iterator[Iterator[_Candidate]]:
    """Waiting after more than one step, waiting in the first, and paused while the agent is in a tool."""
    lines = [line for line in cluster.waiting_lines() if asks(line[0])]
    programs = [line for line in lines if line[0].program is not None]
    starts = [bisect_left(line, _NEW, key=published_rank) for line in programs]
    known = [islice(line, start) for line, start in zip(programs, starts, strict=True)]
    new = [_from(line, start) for line, start in zip(programs, starts, strict=True)]
    yield map(_waiting, merge(*known, key=published_rank))
    yield map(_waiting, merge(*new, key=published_rank))
    yield from (map(_waiting, line) for line in lines if line[0].program is None)
    yield (_Candidate(program.need_tokens, None, program) for program in cluster.paused_idle_smallest_first())


def _waiting(waiter: WaiterView) -> _Candidate:
    return _Candidate(waiter.need_tokens, waiter.turn, waiter.program)


def _from(line: Sequence[WaiterView], start: int) -> Iterator[WaiterView]:
    return (line[index] for index in range(start, len(line)))
