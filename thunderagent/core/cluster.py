"""All that the scheduler knows, and what a policy may read of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from weakref import WeakValueDictionary

from attrs import define, field

from thunderagent.core.backend import Backend
from thunderagent.core.ids import BackendId, ProgramId, TurnId
from thunderagent.core.ledger import Ledger
from thunderagent.core.program import Program
from thunderagent.core.queue import Queue, Waiter
from thunderagent.core.turn import Serving, Turn

__all__ = ["Cluster"]


@define(eq=False, repr=False)
class Cluster:
    """Backends, programs, turns and the queue. Only the scheduler changes it; policies see ``ClusterView``."""

    now: float = 0.0
    backend_by_id: dict[BackendId, Backend] = field(factory=dict)
    program_by_id: dict[ProgramId, Program] = field(factory=dict)
    turn_by_id: dict[TurnId, Turn] = field(factory=dict)
    idle: dict[ProgramId, Program] = field(factory=dict)
    """Programs without turns, the one idle for longest first."""
    paused_by_id: dict[ProgramId, Program] = field(factory=dict)
    queue: Queue = field(factory=Queue)
    ledger: Ledger = field(factory=Ledger)
    _serving: WeakValueDictionary[str | None, Serving] = field(factory=WeakValueDictionary)

    @property
    def backends(self) -> Sequence[Backend]:
        """Backends that take turns now, in the order they were added. O(backends)."""
        return [backend for backend in self.backend_by_id.values() if backend.is_available]

    @property
    def program_count(self) -> int:
        """Programs known, whatever their status."""
        return len(self.program_by_id)

    @property
    def waiting_count(self) -> int:
        """Programs that ask for a place, and turns that wait alone."""
        return len(self.queue)

    @property
    def paused(self) -> Collection[Program]:
        """Paused programs, whether a turn of theirs waits or not."""
        return self.paused_by_id.values()

    def waiting(self) -> Iterator[Waiter]:
        """Who waits, oldest first; do not admit while iterating: return decisions."""
        return self.queue.oldest_first()

    def waiting_lines(self) -> Sequence[Sequence[Waiter]]:
        """Who waits for the policy's word, oldest first: per model one line of programs and one of turns alone."""
        return self.queue.lines_by_age()

    def line_of(self, turn: Turn) -> Sequence[Waiter]:
        """Those who wait for the policy's word before a turn that has just arrived."""
        line: Sequence[Waiter] = self.queue.lines.get((turn.model, turn.waits_alone), ())
        return line

    def waiting_smallest_first(self) -> Iterator[Waiter]:
        """Who waits, by the tokens that they need."""
        return self.queue.smallest_first()

    def program(self, program: ProgramId) -> Program | None:
        """A program by its id; None for an unknown one."""
        return self.program_by_id.get(program)

    def added_tokens(self, turn: Turn, backend: Backend) -> int:
        """Tokens that forwarding the turn there would add to the account: for a program without a place all that
        it needs, on its place the growth only; shared prefixes that are there already cost nothing."""
        return self.ledger.added_tokens(turn, backend)

    def added_tokens_of(self, program: Program, backend: Backend) -> int:
        """Tokens that giving the program its place there would add to the account."""
        return self.ledger.added_tokens_of(program, backend)

    def footprint_tokens(self, program: Program) -> int:
        """Tokens of KV that the program needs resident to go on, shared prefixes in full."""
        return self.ledger.footprint_tokens(program)

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
            serving = Serving(model, [backend for backend in self.backends if backend.serves(model)])
            self._serving[model] = serving
        return serving

    def refresh_serving(self) -> None:
        """Bring the lists of ``serving`` up to date after a backend changed."""
        available = self.backends
        for serving in list(self._serving.values()):
            serving.backends = [backend for backend in available if backend.serves(serving.model)]

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
