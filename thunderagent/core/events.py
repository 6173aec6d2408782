"""What the driver tells the scheduler: one frozen value per thing that happened.

Every field is a number, a string or a tuple of them, so that an event can be written to a file or a socket.
"""

from __future__ import annotations

from attrs import frozen

from thunderagent.core.ids import BackendId, BranchId, PrefixKey, ProgramId, TurnId
from thunderagent.core.usage import Outcome, Prefills, Usage

__all__ = [
    "BackendAdded",
    "BackendDraining",
    "BackendFailed",
    "BackendObserved",
    "BackendRecovered",
    "BackendRemoved",
    "CachedPrefix",
    "Event",
    "ForwardFailed",
    "Prefix",
    "PrefixesObserved",
    "ProgramReleased",
    "Tick",
    "TurnAbandoned",
    "TurnArrived",
    "TurnFinished",
    "TurnProgressed",
]


@frozen
class Prefix:
    """A stretch at the beginning of a prompt that other conversations may share: ``size_bytes`` of the body."""

    key: PrefixKey
    size_bytes: int


@frozen
class TurnArrived:
    """A request came in. ``program`` is None for a one-off turn, ``model`` None where the body names none.

    ``prefixes`` lie behind one another from the start of the prompt.
    """

    turn: TurnId
    program: ProgramId | None
    branch: BranchId
    model: str | None
    body_bytes: int
    prefixes: tuple[Prefix, ...] = ()


@frozen
class TurnProgressed:
    """A forwarded turn streams; ``output_tokens`` counts what came so far (sent at most once a second)."""

    turn: TurnId
    output_tokens: int


@frozen
class TurnFinished:
    """A forwarded turn ended. Without ``usage`` the prompt estimate and ``output_tokens`` stand in for it."""

    turn: TurnId
    outcome: Outcome
    usage: Usage | None = None
    output_tokens: int = 0
    first_token_seconds: float | None = None
    """From its forward to the first token or byte; None where there was none, or it is not known."""


@frozen
class ForwardFailed:
    """A backend gave no answer at all: no byte reached the client, so the turn may be tried elsewhere.

    ``sent``: whether the backend may have seen the request (a reset), or not (connection refused).
    """

    turn: TurnId
    reason: str
    sent: bool


@frozen
class TurnAbandoned:
    """The client left, whether its turn was held or running."""

    turn: TurnId


@frozen
class ProgramReleased:
    """The client says that the program is over. An unknown program changes nothing."""

    program: ProgramId


@frozen
class BackendAdded:
    """A backend joins, healthy. ``models`` None: unknown, so any may be asked of it; see BackendObserved."""

    backend: BackendId
    models: tuple[str, ...] | None = None
    capacity_tokens: int | None = None


@frozen
class BackendObserved:
    """What a backend said of itself. None means that it did not say, and changes nothing known before.

    ``kv_usage_ratio`` (0-1) counts running requests only in vLLM: a check on the accounts, not their source.
    ``prefills`` are those of requests that ended since it was looked at before.
    """

    backend: BackendId
    models: tuple[str, ...] | None = None
    capacity_tokens: int | None = None
    kv_usage_ratio: float | None = None
    requests_running: int | None = None
    requests_waiting: int | None = None
    prefills: Prefills | None = None


@frozen
class BackendFailed:
    """A backend does not answer. Its programs lose their places at once; turns on it end by themselves."""

    backend: BackendId
    reason: str


@frozen
class BackendRecovered:
    """A failed backend answers again, with an empty cache as far as anyone knows."""

    backend: BackendId


@frozen
class BackendDraining:
    """A backend takes no more turns; those on it finish."""

    backend: BackendId


@frozen
class BackendRemoved:
    """A backend is gone from the configuration."""

    backend: BackendId


@frozen
class CachedPrefix:
    """What a backend has cached of a program.

    ``prefix_tokens``: the unbroken beginning of the conversation that ran last, None where that is not known.
    ``held_tokens``: all blocks that its conversations stored or stand on.
    """

    program: ProgramId
    prefix_tokens: int | None
    held_tokens: int


@frozen
class PrefixesObserved:
    """An engine's KV events told what is cached of programs now. Unknown programs change nothing."""

    backend: BackendId
    prefixes: tuple[CachedPrefix, ...]


@frozen
class Tick:
    """Time passed: sent when ``Scheduler.next_deadline()`` is reached."""


Event = (
    TurnArrived
    | TurnProgressed
    | TurnFinished
    | ForwardFailed
    | TurnAbandoned
    | ProgramReleased
    | BackendAdded
    | BackendObserved
    | BackendFailed
    | BackendRecovered
    | BackendDraining
    | BackendRemoved
    | PrefixesObserved
    | Tick
)
