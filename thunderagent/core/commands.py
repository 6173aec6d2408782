"""What the scheduler tells the driver: commands to carry out, and notices for logs, metrics and hooks."""

from __future__ import annotations

from enum import Enum

from attrs import field, frozen

from thunderagent.core.ids import BackendId, ProgramId, TurnId

__all__ = [
    "Command",
    "DecisionRejected",
    "Forward",
    "HoldReason",
    "Notice",
    "PauseReason",
    "PolicyFailed",
    "PrefixLost",
    "ProgramAdmitted",
    "ProgramExpired",
    "ProgramForced",
    "ProgramMoved",
    "ProgramPaused",
    "ProgramYielding",
    "Refuse",
    "RefuseCode",
    "TurnHeld",
]


class RefuseCode(Enum):
    """Why a turn is turned away; ``thunderagent.errors`` fixes the HTTP status of each."""

    MODEL_NOT_FOUND = "model_not_found"
    PROGRAM_RELEASED = "program_released"
    HOLD_LIMIT = "hold_limit"
    QUEUE_FULL = "queue_full"
    TOO_MANY_PROGRAMS = "too_many_programs"
    BACKEND_UNAVAILABLE = "no_backend"
    """No backend takes turns of the model."""
    BACKEND_GONE = "backend_unavailable"
    """Backends took the turn and broke off before they answered."""


class HoldReason(Enum):
    """Why a turn waits in the router."""

    POLICY = "policy"
    NO_BACKEND = "no_backend"
    YIELDING = "yielding"


class PauseReason(Enum):
    """Why a program lost its place."""

    POLICY = "policy"
    HOLD_LIMIT = "hold_limit"
    BACKEND_LOST = "backend_lost"


@frozen
class Forward:
    """Send the turn to the backend now."""

    turn: TurnId
    backend: BackendId


@frozen
class Refuse:
    """Answer the turn with an error; ``retry_after_seconds`` None where trying again is of no use."""

    turn: TurnId
    code: RefuseCode
    message: str
    retry_after_seconds: float | None = None


@frozen
class TurnHeld:
    """The turn waits; ``deadline_at`` (the scheduler's clock) is when it reaches the hold limit. None: without limit.

    What happens then is ``on_hold_limit``'s: with ``head`` it waits on until room has been made for it.
    """

    turn: TurnId
    program: ProgramId | None
    reason: HoldReason
    deadline_at: float | None


@frozen
class ProgramAdmitted:
    """The program has a place; ``waited_seconds`` since it first asked for it."""

    program: ProgramId
    backend: BackendId
    waited_seconds: float
    resumed: bool


@frozen
class ProgramYielding:
    """The program gives its place up at its next turn boundary."""

    program: ProgramId
    backend: BackendId


@frozen
class ProgramPaused:
    """The program lost its place."""

    program: ProgramId
    backend: BackendId
    reason: PauseReason


@frozen
class ProgramMoved:
    """The program's place changed; turns on the former backend finish there."""

    program: ProgramId
    origin: BackendId
    backend: BackendId


@frozen
class ProgramForced:
    """The hold limit was reached and the program was let in without regard to capacity."""

    program: ProgramId | None
    backend: BackendId


@frozen
class ProgramExpired:
    """The program had no turn for ``program_ttl_seconds`` and is forgotten."""

    program: ProgramId
    idle_seconds: float


@frozen
class PrefixLost:
    """A turn came back to the backend of the one before it, which had evicted most of what that had left.

    ``expected_tokens`` of the former prompt, of which ``cached_tokens`` were found; the others were prefilled anew.
    """

    program: ProgramId | None
    backend: BackendId
    expected_tokens: int
    cached_tokens: int


@frozen
class DecisionRejected:
    """A policy's decision was not legal and changed nothing."""

    decision: str
    reason: str


@frozen
class PolicyFailed:
    """A policy raised; ``where`` names the method, ``at`` the line. It counts as no decision."""

    where: str
    error: str
    at: str = field(default="", eq=False)


Notice = (
    TurnHeld
    | ProgramAdmitted
    | ProgramYielding
    | ProgramPaused
    | ProgramMoved
    | ProgramForced
    | ProgramExpired
    | PrefixLost
    | DecisionRejected
    | PolicyFailed
)
Command = Forward | Refuse | Notice
