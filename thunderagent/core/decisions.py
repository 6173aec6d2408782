"""What a policy may decide, and what it is asked about."""

from __future__ import annotations

from enum import Enum

from attrs import frozen

from thunderagent.core.ids import BackendId, ProgramId, TurnId

__all__ = ["Admit", "AdmitTurn", "Decision", "Move", "Pause", "Reconsider", "Trigger", "Yield"]


class Trigger(Enum):
    """Why ``Policy.rebalance`` is called."""

    TICK = "tick"
    TURN_FINISHED = "turn_finished"
    TURN_HELD = "turn_held"
    TOKENS_CHANGED = "tokens_changed"
    PROGRAM_RELEASED = "program_released"
    BACKENDS_CHANGED = "backends_changed"


@frozen
class Admit:
    """Give a new or paused program a place and forward its held turns. On its own place: it no longer yields."""

    program: ProgramId
    backend: BackendId


@frozen
class AdmitTurn:
    """Forward one held turn that waits for itself: a one-off turn, or one beside its program's place."""

    turn: TurnId
    backend: BackendId


@frozen
class Yield:
    """An admitted program gives its place up at its next turn boundary (at once if none of its turns runs)."""

    program: ProgramId


@frozen
class Pause:
    """An admitted program without a running turn loses its place now."""

    program: ProgramId


@frozen
class Move:
    """An admitted program's place becomes another backend; turns that run finish where they are."""

    program: ProgramId
    backend: BackendId


@frozen
class Reconsider:
    """Offer the waiting turns to ``Policy.admit`` again, oldest first, until it holds one (for each model)."""


Decision = Admit | AdmitTurn | Yield | Pause | Move | Reconsider
