"""One inference request on its way through the scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING

from attrs import define, field

from thunderagent.core.commands import HoldReason
from thunderagent.core.ids import BackendId, ProgramId, TurnId

if TYPE_CHECKING:
    from thunderagent.core.backend import Backend
    from thunderagent.core.program import Branch, Program

__all__ = ["NO_TURNS", "Serving", "Turn", "TurnStatus", "with_turn", "without_turn"]


class TurnStatus(Enum):
    """A turn is held until it is forwarded; a forward that failed before its first byte is held again."""

    HELD = "held"
    FORWARDED = "forwarded"
    FINISHED = "finished"


@define(eq=False, repr=False)
class Serving:
    """The backends that take turns of one model now; kept up to date as backends come and go."""

    model: str | None
    backends: list[Backend] = field(factory=list)

    def __repr__(self) -> str:
        return f"<Serving {self.model!r} on {[backend.id for backend in self.backends]}>"


@define(eq=False, repr=False)
class Turn:
    """A request. ``branch`` belongs to no program for a one-off turn."""

    id: TurnId
    program: Program | None
    branch: Branch
    model: str | None
    body_bytes: int
    prompt_tokens: int
    arrived_at: float
    serving: Serving
    status: TurnStatus = TurnStatus.HELD
    backend: Backend | None = None
    """Where it runs; None while it is held."""
    forwarded_at: float | None = None
    answered_by: Backend | None = None
    """Where its prompt was computed, once that is known: by the first output that is told, or by its end."""
    answered_at: float = 0.0
    """Since when it is known."""
    output_tokens: int = 0
    counted_tokens: int = 0
    """Output that is counted where it runs: what it had when it was forwarded or last told of."""
    expected_tokens: int = 0
    """What its conversation had left in the backend's cache when it was forwarded, evicted or not."""
    age_tokens: int = 0
    """What the backend had cached anew since then."""
    waits_alone: bool = False
    """A one-off turn, or one whose program is placed on a backend that cannot serve it."""
    hold_reason: HoldReason | None = None
    waiting_since: float | None = None
    """Since when it waits, over all tries to send it; None where it did not have to, and once its answer begins."""
    asking_since: float | None = None
    """The same for its program, whose age is this when a forward of the turn fails."""
    deadline_at: float | None = None
    retry_at: float | None = None
    held_sequence: int = 0
    """Order in which turns came to the queue, while it is held."""
    due: tuple[float, TurnId] | None = None
    """Its entry among the deadlines: the earlier of ``deadline_at`` and ``retry_at``."""
    tried: frozenset[BackendId] = frozenset()
    """Backends that could not be reached for it since the last retry."""
    failed_sends: int = 0
    """Times a backend took the request and broke off before answering."""

    @property
    def program_id(self) -> ProgramId | None:
        return None if self.program is None else self.program.id

    @property
    def place(self) -> Backend | None:
        """Where its program is admitted; None for a program without a place and for a turn that waits alone."""
        return None if self.program is None or self.waits_alone else self.program.place

    @property
    def origin(self) -> BackendId | None:
        """Where what its conversation left may still lie, if it can run there: the last place of its program, or for
        a turn beside its program's place the backend of the conversation's last turn."""
        if self.program is None:
            return None
        if self.waits_alone:
            history = self.branch.history
            backend, cache_life = history.backend, history.cache_life
        else:
            backend, cache_life = self.program.last_place, self.program.last_life
        if backend is None or backend.cache_life != cache_life or not self.may_run_on(backend):
            return None
        return backend.id

    @property
    def eligible_backends(self) -> Sequence[Backend]:
        """Backends that serve its model, take turns, and have not just failed it."""
        if not self.tried:
            return self.serving.backends
        return [backend for backend in self.serving.backends if backend.id not in self.tried]

    def may_run_on(self, backend: Backend) -> bool:
        """Whether the backend is among ``eligible_backends``. O(1)."""
        return backend.is_available and backend.id not in self.tried and backend.serves(self.model)

    @property
    def asks(self) -> bool:
        """Whether it waits for the policy's word, or will once a backend is there."""
        if self.hold_reason is HoldReason.NO_BACKEND:
            return not self.tried
        return self.hold_reason is HoldReason.POLICY

    def answer(self, now: float) -> None:
        """Where it runs its prompt is computed."""
        if self.answered_by is None:
            self.answered_by, self.answered_at = self.backend, now

    def could_hold(self, backend: Backend) -> bool:
        """Whether it fits into the whole cache of the backend, as far as that is known."""
        return backend.capacity_tokens is None or self.need_tokens <= backend.capacity_tokens

    @property
    def need_tokens(self) -> int:
        """Prompt and output so far."""
        return self.prompt_tokens + self.output_tokens

    def __repr__(self) -> str:
        return f"<Turn {self.id} of {self.program_id!r} {self.status.value}>"


NO_TURNS: dict[TurnId, Turn] = {}
"""Stands for every empty collection of turns, and is never changed: most programs run and hold none, and a dict that
was emptied keeps its memory."""


def with_turn(turns: dict[TurnId, Turn], turn: Turn) -> dict[TurnId, Turn]:
    """The turns, changed in place where there are any, and this one."""
    if not turns:
        return {turn.id: turn}
    turns[turn.id] = turn
    return turns


def without_turn(turns: dict[TurnId, Turn], turn: Turn) -> dict[TurnId, Turn]:
    """The turns but for this one, which is among them."""
    del turns[turn.id]
    return turns or NO_TURNS
