"""What a scheduling policy is, and what it sees.

A policy reads the views below and returns decisions; it changes nothing itself, does no I/O, and knows no time
but ``cluster.now``. The scheduler calls it synchronously, from one thread. If a method raises, that counts as
no decision, is logged and counted, and no request is lost.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

from thunderagent.core.commands import Notice
from thunderagent.core.decisions import Decision, Reconsider, Trigger
from thunderagent.core.events import Event
from thunderagent.core.ids import BackendId, PrefixKey, ProgramId, TurnId
from thunderagent.core.program import Standing, Status

__all__ = ["BackendView", "ClusterView", "OptionError", "Policy", "ProgramView", "TurnView", "WaiterView", "roomiest"]


class OptionError(ValueError):
    """A ``--policy-option`` that the policy does not know or cannot use."""


class ProgramView(Protocol):
    """An agent run. Times are readings of ``cluster.now``, in seconds."""

    @property
    def id(self) -> ProgramId: ...
    @property
    def sequence(self) -> int:
        """Order of first arrival."""

    @property
    def status(self) -> Status: ...
    @property
    def place(self) -> BackendView | None:
        """Where it is admitted."""

    @property
    def origin(self) -> BackendId | None:
        """Its last place, where its prefix may still lie; None if it never had one or that backend was lost."""

    @property
    def own_tokens(self) -> int:
        """Charged at its place, without shared prefixes; 0 without a place."""

    @property
    def need_tokens(self) -> int:
        """Needed resident to go on, shared prefixes in full. O(branches)."""

    @property
    def prefixes(self) -> frozenset[PrefixKey]: ...
    @property
    def waiting_since(self) -> float | None:
        """Since when it asks for a place, over repeated tries of its client; None while it has one."""

    @property
    def idle_since(self) -> float:
        """When its last turn ended; meaningful while it has none."""

    @property
    def admitted_at(self) -> float | None: ...
    @property
    def service_seconds(self) -> float:
        """Time that its turns ran since it was last admitted."""

    @property
    def turns_finished(self) -> int: ...
    @property
    def is_idle(self) -> bool:
        """Without running and held turns."""


class BackendView(Protocol):
    """An inference server; token counts are running totals, read in O(1)."""

    @property
    def id(self) -> BackendId: ...
    @property
    def capacity_tokens(self) -> int | None:
        """Usable KV tokens; None while unknown, which is never a reason to hold."""

    @property
    def accounted_tokens(self) -> int:
        """Reasoning, acting, yielding, guest and shared tokens."""

    @property
    def free_tokens(self) -> int | None:
        """Capacity less accounted and reserved tokens; negative when over; None while capacity is unknown."""

    @property
    def reasoning_tokens(self) -> int: ...
    @property
    def acting_tokens(self) -> int: ...
    @property
    def yielding_tokens(self) -> int:
        """Of programs that leave at their next turn boundary."""

    @property
    def guest_tokens(self) -> int:
        """Of running turns whose program is not placed here."""

    @property
    def shared_tokens(self) -> int:
        """Of beginnings that several conversations share, counted once."""

    @property
    def program_count(self) -> int: ...
    @property
    def turn_count(self) -> int: ...
    @property
    def kv_usage_ratio(self) -> float | None: ...
    @property
    def requests_running(self) -> int | None: ...
    @property
    def requests_waiting(self) -> int | None: ...
    def count(self, standing: Standing) -> int: ...
    def smallest_first(self, standing: Standing) -> Iterator[ProgramView]:
        """Placed programs of that standing by own tokens, ascending."""

    def longest_idle_first(self) -> Iterator[ProgramView]:
        """Placed programs that act (no turn runs), the one idle for longest first."""


class TurnView(Protocol):
    """A request to be placed."""

    @property
    def id(self) -> TurnId: ...
    @property
    def program(self) -> ProgramView | None:
        """None for a one-off turn."""

    @property
    def model(self) -> str | None: ...
    @property
    def place(self) -> BackendView | None:
        """Where its program is admitted, if it can run there."""

    @property
    def waits_alone(self) -> bool:
        """It gives its program no place: a one-off turn, or one that its program's place cannot serve."""

    @property
    def prompt_tokens(self) -> int:
        """Estimated from its bytes and the branch's history."""

    @property
    def eligible_backends(self) -> Sequence[BackendView]:
        """Where it can run; never empty when ``admit`` is called."""


class WaiterView(Protocol):
    """A program that asks for a place (admit with ``Admit``), or a turn alone (admit with ``AdmitTurn``)."""

    @property
    def program(self) -> ProgramView | None: ...
    @property
    def turn(self) -> TurnView:
        """The turn that has waited longest for the policy's word, or if none does, for anything."""

    @property
    def since(self) -> float: ...
    @property
    def need_tokens(self) -> int: ...
    @property
    def is_urgent(self) -> bool:
        """It reached the hold limit: the scheduler itself makes room for it, decisions on it are rejected."""


class ClusterView(Protocol):
    """Everything a policy may know. Sizes in tokens; ``now`` is the only clock."""

    @property
    def now(self) -> float: ...
    @property
    def backends(self) -> Sequence[BackendView]:
        """Those that take turns."""

    @property
    def program_count(self) -> int: ...
    @property
    def waiting_count(self) -> int: ...
    @property
    def paused(self) -> Collection[ProgramView]: ...
    def waiting(self) -> Iterator[WaiterView]:
        """Oldest first."""

    def waiting_smallest_first(self) -> Iterator[WaiterView]: ...
    def waiting_lines(self) -> Sequence[Sequence[WaiterView]]:
        """Those who wait for the policy's word, oldest first: per model one line of programs, one of turns alone.

        Lines whose oldest waits for longer come first. Who waits for something else (a backend, its program's
        turn boundary, room that the scheduler makes at the hold limit) stands in none.
        """

    def program(self, program: ProgramId) -> ProgramView | None: ...

    def line_of(self, turn: Any) -> Sequence[WaiterView]:
        """The line that a turn which has just arrived would join."""

    # The three below take only views that this cluster handed out; ``Any`` keeps the views read-only protocols.
    def added_tokens(self, turn: Any, backend: Any) -> int:
        """Tokens that forwarding the turn on the backend would add to its account."""

    def added_tokens_of(self, program: Any, backend: Any) -> int:
        """Tokens that giving the program its place on the backend would add to its account."""

    def footprint_tokens(self, program: Any) -> int:
        """Tokens that the program needs resident, shared prefixes in full."""

    def fits(self, turn: Any, backend: Any, headroom_tokens: int = 0) -> bool:
        """Whether ``added_tokens`` and the headroom fit into the backend's free tokens."""


_AnyBackend = TypeVar("_AnyBackend", bound=BackendView)


def roomiest(backends: Sequence[_AnyBackend]) -> _AnyBackend:
    """The backend with the most free tokens; of those with unknown capacity the one that accounts the least.

    Unknown capacity is no reason to stay away: such a backend counts as roomier than any other.
    """

    def room(backend: _AnyBackend) -> tuple[bool, int]:
        free_tokens = backend.free_tokens
        if free_tokens is None:
            return (True, -backend.accounted_tokens)
        return (False, free_tokens)

    return max(backends, key=room)


class Policy(ABC):
    """Base class of scheduling policies; see docs/writing-a-policy.md."""

    name: ClassVar[str]
    """The name of the entry point, and of ``--policy``."""

    buffer_tokens: int = 0
    """Headroom per admitted program beyond what is accounted, for reports."""

    tick_seconds: float | None = None
    """How often to be called with ``Trigger.TICK``; None: only on events."""

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> Policy:
        """Build the policy from ``--policy-option key=value``.

        Raises:
            OptionError: an unknown option or an unusable value, in words for the user.
        """
        if options:
            raise OptionError(f"policy {cls.name!r} takes no options, got {', '.join(sorted(options))}")
        return cls()

    @abstractmethod
    def admit(self, turn: TurnView, cluster: ClusterView) -> BackendId | None:
        """The backend for a turn, out of ``turn.eligible_backends``; None holds it.

        Called once for every turn that arrives, except where the scheduler itself must hold it (its program is
        yielding, no backend is there), and again after ``Reconsider``. Naming another backend than the place
        moves the program. Should cost O(backends).
        """

    def rebalance(self, cluster: ClusterView, trigger: Trigger) -> Sequence[Decision]:
        """Decisions after events that free or take tokens, and on ticks. Default: offer held turns again."""
        is_of_use = cluster.waiting_count and trigger is not Trigger.TURN_HELD
        return (Reconsider(),) if is_of_use else ()

    def observe(self, event: Event | Notice, cluster: ClusterView) -> None:  # noqa: B027 (optional to override)
        """Called with every event, before it is handled, and every notice, for policies that learn."""
