"""What a scheduling policy is, and what it sees.

A policy reads the views below and returns decisions; it changes nothing itself, does no I/O, and knows no time
but ``cluster.now``. The scheduler calls it synchronously, from one thread. If a method raises, that counts as
no decision, is logged and counted, and no request is lost.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

from thunderagent.core.commands import Notice
from thunderagent.core.decisions import Decision, Reconsider, Trigger
from thunderagent.core.events import Event
from thunderagent.core.ids import BackendId, PrefixKey, ProgramId, TurnId
from thunderagent.core.program import Standing, Status
from thunderagent.core.settings import OnHoldLimit

__all__ = [
    "ASSUMED_REFILL_SECONDS",
    "ROTATION_RATIO",
    "BackendView",
    "ClusterView",
    "DemandView",
    "OptionError",
    "Policy",
    "ProgramView",
    "ToolTimesView",
    "TurnView",
    "UnknownOption",
    "WaiterView",
    "roomiest",
]


ASSUMED_REFILL_SECONDS = 30.0
"""Taken for ``BackendView.refill_seconds`` while that is unknown."""

ROTATION_RATIO = 0.1
"""The share of the engines that may go into prefilling programs again whose place went to others: what waits are
foreseen by, and what ``working-set`` pays at the interactive end."""


class OptionError(ValueError):
    """A ``--policy-option`` that the policy does not know or cannot use."""


class UnknownOption(OptionError):
    """One that it does not know: ``options`` names those. The start looks for another policy that they may be meant
    for."""

    def __init__(self, message: str, options: Collection[str] = ()) -> None:
        super().__init__(message)
        self.options = tuple(options)


class ProgramView(Protocol):
    """An agent run. Times are readings of ``cluster.now``, in seconds."""

    @property
    def id(self) -> ProgramId: ...
    @property
    def sequence(self) -> int:
        """Order of first arrival."""

    @property
    def arrived_at(self) -> float:
        """When its first turn came."""

    @property
    def status(self) -> Status: ...
    @property
    def model(self) -> str | None:
        """Model of its own conversation: the one that it began with, then the one that its last new place was given
        for; sub-agents' may be others. None before its first turn, and where its requests name none. Which backends
        may take the program while none of its turns waits: those with ``serves(model)``."""

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
        """When it was last left without running and held turns; meaningful while it has none."""

    @property
    def acting_since(self) -> float:
        """When its last running turn ended: since when its tools run. Meaningful while no turn runs."""

    @property
    def admitted_at(self) -> float | None: ...
    @property
    def service_seconds(self) -> float:
        """Time that its turns ran since it was last admitted."""

    @property
    def turns_served(self) -> int:
        """Turns that ended at its place since it was last admitted."""

    @property
    def turns_finished(self) -> int: ...
    @property
    def turn_count(self) -> int:
        """Turns of it that run."""

    @property
    def tool_times(self) -> ToolTimesView | None:
        """How long its tools took so far; None before it has used one. See ``ClusterView.tool_times``."""

    def held_turns(self) -> Iterator[TurnView]:
        """Its turns that wait, in the order in which they were held."""

    @property
    def is_idle(self) -> bool:
        """Without running and held turns."""


class ToolTimesView(Protocol):
    """How long tools took, in seconds: from the end of a turn to the next one of its conversation. O(1) each."""

    @property
    def count(self) -> float:
        """Samples, as they still weigh in."""

    def quantile_seconds(self, share: float) -> float | None:
        """What that share of them took no longer than; None without a sample."""

    def chance_of_return(self, idle_seconds: float, within_seconds: float) -> float | None:
        """The chance that a tool which has run for so long ends within so much more; None without a sample."""

    def remaining_seconds(self, idle_seconds: float) -> float | None:
        """The median of what is left of a tool that has run for so long; None without a sample."""


class DemandView(Protocol):
    """What something takes on a backend that is not its program's place; of the moment, not to be kept."""

    @property
    def bare_tokens(self) -> int:
        """Without beginnings that others may share: the least that it takes anywhere, but where ``charged``."""

    @property
    def charged(self) -> Sequence[object]:
        """Conversations of it that run on some backend as guests already, and are charged there."""

    @property
    def tokens(self) -> int:
        """On a backend that has none of it."""

    def added_tokens(self, backend: Any) -> int:
        """What the account of this backend would grow by. O(1)."""


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
    def saved_tokens(self) -> int:
        """What those beginnings would take more if each conversation counted them by itself."""

    @property
    def program_count(self) -> int: ...
    @property
    def turn_count(self) -> int: ...
    @property
    def reserved_tokens(self) -> int:
        """Promised to turns that reached the hold limit."""

    @property
    def spare_tokens(self) -> int | None:
        """Capacity that no running turn needs: where the prefixes of idle programs may lie. None while unknown."""

    @property
    def refill_seconds(self) -> float | None:
        """How long it takes to fill the whole cache with prompts; None while that is unknown."""

    @property
    def expected_refill_seconds(self) -> float:
        """``refill_seconds``, or ``ASSUMED_REFILL_SECONDS`` while that is unknown."""

    @property
    def kv_usage_ratio(self) -> float | None:
        """What the engine says its running requests use of the cache, 0 to 1, some seconds ago."""

    @property
    def running_tokens(self) -> int:
        """Accounted for programs and turns that run, shared beginnings left out."""

    @property
    def observed_running_tokens(self) -> int:
        """``running_tokens`` at the time of which ``kv_usage_ratio`` tells."""

    @property
    def requests_running(self) -> int | None: ...
    @property
    def requests_waiting(self) -> int | None: ...
    def serves(self, model: str | None) -> bool:
        """Whether it can be asked for the model; where its models are unknown, or none is named, it can. O(1)."""

    def count(self, standing: Standing) -> int: ...
    def smallest_first(self, standing: Standing) -> Iterator[ProgramView]:
        """Placed programs of that standing by own tokens, ascending."""

    def largest_first(self, standing: Standing) -> Iterator[ProgramView]: ...
    def longest_first(self, standing: Standing) -> Iterator[ProgramView]:
        """Placed programs of that standing, the one that has had it here for longest first."""

    def latest_first(self, standing: Standing) -> Iterator[ProgramView]:
        """The other way round."""

    def decayed_acting_tokens(self, half_life_seconds: float, now: float) -> float:
        """Acting tokens, each program's halved for every half-life since its ``acting_since``. O(1)."""

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
    def backend(self) -> BackendView | None:
        """Where it runs; None before that, and once it is over."""

    @property
    def answered_by(self) -> BackendView | None:
        """Where its prompt was computed, once that is known: by the first output that is told, or by its end."""

    @property
    def answered_at(self) -> float:
        """The reading of ``cluster.now`` since which that is known."""

    @property
    def origin(self) -> BackendId | None:
        """Where what its conversation left may still lie: its program's ``origin``, or for a turn beside its
        program's place the backend of that conversation's last turn. None where there is none, its cache was lost
        since, or the turn cannot run there; and for a one-off turn."""

    @property
    def waits_alone(self) -> bool:
        """It gives its program no place: a one-off turn, or one that its program's place cannot serve."""

    @property
    def prompt_tokens(self) -> int:
        """Estimated from its bytes and the branch's history."""

    @property
    def eligible_backends(self) -> Sequence[BackendView]:
        """Where it can run; never empty when ``admit`` is called."""

    def may_run_on(self, backend: Any) -> bool:
        """Whether the backend is among them. O(1)."""


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
    def changed_backends(self) -> Sequence[BackendView]:
        """Those of them whose accounts changed since ``rebalance`` was last called."""

    @property
    def changed_program(self) -> ProgramView | None:
        """The program that the event at hand is about, if it is about one."""

    @property
    def program_count(self) -> int: ...
    @property
    def waiting_count(self) -> int: ...
    @property
    def paused(self) -> Collection[ProgramView]: ...
    def paused_idle_smallest_first(self) -> Iterator[ProgramView]:
        """Paused programs without a turn, by the tokens that they need."""

    @property
    def tool_times(self) -> ToolTimesView:
        """How long the tools of all programs took."""

    def waiting(self) -> Iterator[WaiterView]:
        """All who wait, whatever for, in the order in which they came to the queue: one that was sent again or
        offered anew stands behind, with its age in ``since``."""

    def waiting_lines(self) -> Sequence[Sequence[WaiterView]]:
        """Those who wait for the policy's word, in the order of ``Policy.rank``.

        Per model three lines: programs without a place, turns that wait at their program's place, turns that wait
        alone. Lines whose first waits for longer come first; those of models that no backend serves now are left
        out. Who waits for something else (its program's turn boundary, another try, room that the scheduler makes
        at the hold limit) stands in none.
        """

    def program(self, program: ProgramId) -> ProgramView | None: ...
    def backend(self, backend: BackendId) -> BackendView | None:
        """One that takes turns, by its id; None for any other."""

    def line_of(self, turn: Any) -> Sequence[WaiterView]:
        """The line that a turn which has just arrived would join."""

    # Those below take only views that this cluster handed out; ``Any`` keeps the views read-only protocols.
    def added_tokens(self, turn: Any, backend: Any) -> int:
        """Tokens that forwarding the turn on the backend would add to its account."""

    def added_tokens_of(self, program: Any, backend: Any) -> int:
        """Tokens that giving the program its place on the backend would add to its account."""

    def demand(self, turn: Any) -> DemandView:
        """What the turn takes where its program has no place yet, computed once to be read for many backends."""

    def demand_of(self, program: Any) -> DemandView:
        """What a program without turns takes, likewise."""

    def footprint_tokens(self, program: Any) -> int:
        """Tokens that the program needs resident, shared prefixes in full."""

    def resident_ratio(self, program: Any) -> float:
        """The share of what the program left that is probably still cached where it was left, 0 to 1.

        Judged by what the backend cached since, against its spare tokens and what came back to others (cached
        tokens in their usage); with ``--kv-events`` by the blocks that the engine says it has.
        """

    def keep_seconds(self, backend: Any) -> float:
        """How long what an idle conversation left on the backend is worth its room: until the room that it takes
        costs more than the prefill for those that come back later, as idle times were so far."""

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

    on_hold_limit: OnHoldLimit = OnHoldLimit.HEAD
    """What happens to a turn at the hold limit, where the operator does not say."""

    tick_seconds: float | None = None
    """How often to be called with ``Trigger.TICK``; None: only on events."""

    wake_at: float | None = None
    """A reading of ``cluster.now`` at which ``rebalance`` is to be called, with ``Trigger.TOKENS_CHANGED``, though
    nothing may happen by then. Read after each ``rebalance``. None, or one that is past: with the next event or tick.
    """

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> Policy:
        """Build the policy from ``--policy-option key=value``.

        Raises:
            OptionError: an unknown option (``UnknownOption`` tells it apart) or an unusable value, in words for the
                user.
        """
        if options:
            message = f"policy {cls.name!r} takes no options, got {', '.join(sorted(options))}"
            raise UnknownOption(message, sorted(options))
        return cls()

    @abstractmethod
    def admit(self, turn: TurnView, cluster: ClusterView) -> BackendId | None:
        """The backend for a turn, out of ``turn.eligible_backends``; None holds it.

        Called once for every turn that arrives, except where the scheduler itself must hold it (its program is
        yielding, no backend is there), and again after ``Reconsider``. Naming another backend than the place
        moves the program. Should cost O(backends).
        """

    def placed(self, turn: TurnView, backend: BackendView, cluster: ClusterView) -> None:  # noqa: B027 (optional)
        """The scheduler itself lets the turn in there, as it is at the hold limit or fits nowhere, however long it
        waits. Called before it is forwarded."""

    def keep_seconds(self, backend: BackendView, cluster: ClusterView) -> float:
        """How long what a conversation left counts on its program's place while others of the program run.

        Default: until ``branch_ttl_seconds`` forgets it. See ``ClusterView.keep_seconds``.
        """
        return math.inf

    def rebalance(self, cluster: ClusterView, trigger: Trigger) -> Iterable[Decision]:
        """Decisions after events that free or take tokens, and on ticks. Default: offer held turns again.

        The first 64 are carried out; where there are more, it is called again at once, after other events.
        """
        is_of_use = cluster.waiting_count and trigger is not Trigger.TURN_HELD
        return (Reconsider(),) if is_of_use else ()

    def rank(self, waiter: WaiterView) -> float:
        """Where a waiter stands in its line: lowest first, then by ``since``, then by arrival. Default: who asks for
        longest is first.

        Read when it joins the line and when its ``since`` or ``need_tokens`` change, so it must not depend on the
        time otherwise: for an order that shifts with the time waited, rank by the difference to ``waiter.since``.
        """
        return waiter.since

    def observe(self, event: Event | Notice, cluster: ClusterView) -> None:  # noqa: B027 (optional to override)
        """Called with every event, before it is handled, and every notice, for policies that learn."""
