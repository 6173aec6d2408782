"""All that the scheduler knows, and what a policy may read of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from weakref import WeakValueDictionary

from attrs import define, field
from sortedcontainers import SortedList

from thunderagent.core.backend import Backend
from thunderagent.core.demand import Demand
from thunderagent.core.ids import BackendId, ProgramId, TurnId
from thunderagent.core.ledger import Ledger
from thunderagent.core.program import Program
from thunderagent.core.queue import Queue, Waiter
from thunderagent.core.return_times import ReturnTimes
from thunderagent.core.tool_times import ToolTimes
from thunderagent.core.turn import Serving, Turn

__all__ = ["Cluster"]


@define(eq=False, repr=False)
class Cluster:
    """Backends, programs, turns and the queue. Only the scheduler changes it; policies see ``ClusterView``."""

    now: float = 0.0
    backend_by_id: dict[BackendId, Backend] = field(factory=dict)
    program_by_id: dict[ProgramId, Program] = field(factory=dict)
    turn_by_id: dict[TurnId, Turn] = field(factory=dict)
    idle: OrderedDict[ProgramId, Program] = field(factory=OrderedDict)
    """Programs without turns, the one idle for longest first."""
    paused_by_id: dict[ProgramId, Program] = field(factory=dict)
    paused_idle: SortedList = field(factory=SortedList)
    """``Program.size_entry`` of the paused programs without turns."""
    queue: Queue = field(factory=Queue)
    ledger: Ledger = field(factory=Ledger)
    tool_times: ToolTimes = field(factory=ToolTimes)
    """How long the tools of all programs took."""
    return_times: ReturnTimes = field(factory=ReturnTimes)
    """When idle conversations came back, or did not."""
    available: list[Backend] = field(factory=list)
    changed: dict[Backend, None] = field(factory=dict)
    changed_program: Program | None = None
    """The program that the event at hand is about."""
    _serving: WeakValueDictionary[str | None, Serving] = field(factory=WeakValueDictionary)

    @property
    def backends(self) -> Sequence[Backend]:
        """Backends that take turns now, in the order they were added. O(1)."""
        return self.available

    @property
    def changed_backends(self) -> Sequence[Backend]:
        """Backends whose accounts changed since ``rebalance`` was last called."""
        return [backend for backend in self.changed if backend.is_available]

    @property
    def program_count(self) -> int:
        """Programs known, whatever their status."""
        return len(self.program_by_id)

    @property
    def waiting_count(self) -> int:
        """Programs that ask for a place, and turns that wait alone."""
        return len(self.queue.waiters)

    @property
    def paused(self) -> Collection[Program]:
        """Paused programs, whether a turn of theirs waits or not."""
        return self.paused_by_id.values()

    def paused_idle_smallest_first(self) -> Iterator[Program]:
        """Paused programs without a turn, by the tokens that they need."""
        return (program for _, _, program in self.paused_idle)

    def waiting(self) -> Iterator[Waiter]:
        """Who waits, in the order in which they came to the queue: one that was sent again or offered anew stands
        behind, with its age in ``since``. Do not admit while iterating: return decisions."""
        return self.queue.in_order()

    def waiting_lines(self) -> Sequence[Sequence[Waiter]]:
        """Who waits for the policy's word and has a backend, in the order of its rank."""
        return self.queue.open_lines()

    def line_of(self, turn: Turn) -> Sequence[Waiter]:
        """Those who wait for the policy's word in the line that a turn which has just arrived would join."""
        line: Sequence[Waiter] = self.queue.lines.get(self.queue.line_for(turn), ())
        return line

    def program(self, program: ProgramId) -> Program | None:
        """A program by its id; None for an unknown one."""
        return self.program_by_id.get(program)

    def backend(self, backend: BackendId) -> Backend | None:
        """A backend that takes turns, by its id; None for any other."""
        found = self.backend_by_id.get(backend)
        return found if found is not None and found.is_available else None

    def demand(self, turn: Turn) -> Demand:
        """What forwarding the turn takes on a backend that is not its program's place, to be read for many."""
        return self.ledger.demand(turn)

    def demand_of(self, program: Program) -> Demand:
        """What giving the program its place takes, likewise."""
        return self.ledger.demand_of(program)

    def added_tokens(self, turn: Turn, backend: Backend) -> int:
        """Tokens that forwarding the turn there would add to the account: for a program without a place all that
        it needs, on its place the growth only; shared prefixes that are there already cost nothing."""
        return self.ledger.added_tokens(turn, backend)

    def added_tokens_of(self, program: Program, backend: Backend) -> int:
        """Tokens that giving the program its place there would add to the account."""
        return self.ledger.demand_of(program).added_tokens(backend)

    def footprint_tokens(self, program: Program) -> int:
        """Tokens of KV that the program needs resident to go on, shared prefixes in full."""
        return self.ledger.footprint_tokens(program)

    def resident_ratio(self, program: Program) -> float:
        """The share of what its conversations left that is probably still cached where they left it, 0 to 1.

        As the engine's KV events say, where they are followed. 0 where all of it lies on backends that were lost
        since, or nothing was left. O(branches).
        """
        kept_tokens, resident_tokens = 0, 0.0
        known: dict[Backend, float | None] = {}
        for branch in program.branches.values():
            kept_tokens += branch.kept_tokens
            backend = branch.history.backend
            if backend is not None and branch.history.lies_on(backend):
                if backend not in known:
                    known[backend] = program.cached_ratio(backend)
                ratio = known[backend]
                if ratio is None:
                    ratio = backend.residency.expected_ratio(branch.history.mark_tokens, backend.spare_tokens)
                resident_tokens += branch.kept_tokens * (1.0 if branch.forwarded else ratio)
        return resident_tokens / kept_tokens if kept_tokens else 0.0

    def keep_seconds(self, backend: Backend) -> float:
        """How long what an idle conversation left on the backend is worth its room there."""
        return self.return_times.keep_seconds(backend.expected_refill_seconds)

    def fits(self, turn: Turn, backend: Backend, headroom_tokens: int = 0) -> bool:
        """Whether the turn and ``headroom_tokens`` fit into the backend's free tokens.

        Unknown capacity fits all, and an empty backend fits any turn not larger than itself: nothing is gained
        by waiting longer. (A turn larger than every eligible backend is not held at all.)
        """
        free_tokens = backend.free_tokens
        if free_tokens is None:
            return True
        if free_tokens == backend.capacity_tokens:
            return turn.could_hold(backend)
        return self.ledger.added_tokens(turn, backend) + headroom_tokens <= free_tokens

    def serving(self, model: str | None) -> Serving:
        """The live list of backends for a model, shared by its turns and forgotten with the last of them."""
        serving = self._serving.get(model)
        if serving is None:
            serving = Serving(model, [backend for backend in self.available if backend.serves(model)])
            self._serving[model] = serving
        return serving

    def refresh_serving(self) -> None:
        """Bring the lists of ``backends`` and ``serving`` up to date after a backend changed."""
        self.available = [backend for backend in self.backend_by_id.values() if backend.is_available]
        for serving in list(self._serving.values()):
            serving.backends = [backend for backend in self.available if backend.serves(serving.model)]

    def could_serve(self, model: str | None) -> bool:
        """Whether a backend serves the model at all, healthy or not. True while none is configured: one may come."""
        return not self.backend_by_id or any(backend.serves(model) for backend in self.backend_by_id.values())

    def unknown_model_text(self, model: str | None) -> str:
        """What a client is told that asks for a model nobody serves, as vLLM says it."""
        served = ", ".join(self.served_models()) or "none"
        return f"The model `{model}` does not exist. Valid aliases: {served}."

    def served_models(self) -> list[str]:
        """Names that the backends serve, as far as known, sorted."""
        return sorted({name for backend in self.backend_by_id.values() for name in backend.models or ()})
