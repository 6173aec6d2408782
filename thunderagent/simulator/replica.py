"""One emulated engine on the virtual clock."""

from __future__ import annotations

import math
from collections.abc import Hashable
from heapq import heappop, heappush

from attrs import define, field

from thunderagent.core.ids import BackendId, TurnId
from thunderagent.emulator.counters import EngineCounters
from thunderagent.emulator.engine import EngineRequest, EngineSettings
from thunderagent.emulator.extents import ExtentCache, Path
from thunderagent.emulator.leaping import LeapingEngine
from thunderagent.emulator.timing import Preset

__all__ = ["Replica", "Running", "new_engine"]

_BLOCK_TOKENS = 16


def new_engine(preset: Preset, kv_tokens: int) -> LeapingEngine:
    """An engine with an empty cache of ``kv_tokens``, rounded down to blocks."""
    blocks = kv_tokens // _BLOCK_TOKENS + 1
    settings = EngineSettings(
        blocks,
        _BLOCK_TOKENS,
        preset.max_num_seqs,
        preset.max_num_batched_tokens,
    )
    engine = LeapingEngine(settings, preset.timing, ExtentCache(blocks, _BLOCK_TOKENS))
    engine.counters = _NoHistograms()
    return engine


class _NoHistograms(EngineCounters):
    """Counts preemptions only: nobody asks a simulated engine for its metrics page."""

    def step_finished(self, scheduled_tokens: int, generated_tokens: int) -> None: ...

    def first_token(self, prompt_tokens: int, cached_tokens: int, seconds: float) -> None: ...

    def next_tokens(self, tokens: int, seconds: float) -> None: ...

    def finished(
        self,
        reason: str,
        prompt_tokens: int,
        cached_tokens: int,
        generated_tokens: int,
        queued_seconds: float,
        prefill_seconds: float,
        seconds: float,
    ) -> None: ...


@define(eq=False)
class Running:
    """A turn inside the engine, as of the last step that said something of it."""

    turn: TurnId
    reported_at: float
    output_tokens: int = 0
    """So far."""
    cached_tokens: int = 0
    is_over: bool = False
    is_due: bool = False
    """Whether it runs on, and ``report_seconds`` have passed since it came or was due."""
    is_watched: bool = False
    """Whether it will be asked about; not before its first token."""


@define(eq=False)
class Replica:
    """Steps an engine: the simulation asks when the step under way ends and comes back then."""

    id: BackendId
    engine: LeapingEngine
    report_seconds: float = math.inf
    """How often a running turn is due; no step that only decodes is longer."""
    step_ends_at: float | None = None
    """None: no step is under way."""
    awaited_at: float | None = None
    """When the simulation comes back for it."""
    _step_began_at: float = 0.0
    _is_delivering: bool = False
    busy_seconds: float = 0.0
    """Time in steps."""
    _turns: dict[str, Running] = field(factory=dict)
    """By the id of the request."""
    _watched: list[tuple[float, TurnId, str]] = field(factory=list)
    """Heap of (reported at, turn, its request)."""
    is_up: bool = True
    """Whether it takes turns; a dead one refuses connections."""

    def submit(
        self,
        turn: TurnId,
        prompt_tokens: int,
        output_tokens: int,
        content: tuple[tuple[Hashable, int], ...],
        now: float,
    ) -> None:
        """A turn comes in. ``content``: segments of the prompt and answer, with the tokens of each."""
        path: list[tuple[Hashable, int]] = []
        end_tokens = start = 0
        for name, tokens in content:
            end_tokens += tokens
            stop = end_tokens // _BLOCK_TOKENS
            path.append((name, stop - start))
            start = stop
        request = str(turn)
        self.engine.add(EngineRequest(request, prompt_tokens, output_tokens, Path(tuple(path))), now)
        self._turns[request] = Running(turn, now)
        if self.step_ends_at is not None:
            ends_at = self._step_began_at + self.engine.shorten_step(now - self._step_began_at)
            self.step_ends_at = max(now, ends_at)
        elif not self._is_delivering:
            self.resume(now)

    def end_step(self, now: float) -> list[Running]:
        """First tokens, ends and turns that are due, of the step that ends now, as the batch has them; others may be
        among them. Call ``resume`` when they are dealt with."""
        self.busy_seconds += now - self._step_began_at
        self.step_ends_at, self._is_delivering = None, True
        turns, watched, told = self._turns, self._watched, []
        asked = self._asked(now) if watched and now - watched[0][0] >= self.report_seconds else ()
        for request, tokens, cached_tokens, finish_reason in self.engine.end_step(now, asked).outputs:
            running = turns[request]
            running.output_tokens += tokens
            running.cached_tokens = cached_tokens
            told.append(running)
            if finish_reason is not None:
                running.is_over = True
                del turns[request]
                continue
            running.is_due = now - running.reported_at >= self.report_seconds
            if running.is_due:
                running.reported_at = now
            if not running.is_watched:
                running.is_watched = True
                heappush(watched, (running.reported_at, running.turn, request))
        return told

    def resume(self, now: float) -> None:
        """Begin the next step."""
        self._is_delivering = False
        duration = self.engine.begin_step(now, self.report_seconds)
        if duration is not None:
            self._step_began_at, self.step_ends_at = now, now + duration

    def busy_seconds_until(self, now: float) -> float:
        """Time in steps, that under way included."""
        return self.busy_seconds + (now - self._step_began_at if self.step_ends_at is not None else 0.0)

    def _asked(self, now: float) -> list[str]:
        """Requests of the turns that are due, which are watched no more until they put out a token."""
        watched, asked = self._watched, []
        while watched and now - watched[0][0] >= self.report_seconds:
            request = heappop(watched)[2]
            running = self._turns.get(request)
            if running is not None:
                running.is_watched = False
                asked.append(request)
        return asked

    def die(self, now: float, engine: LeapingEngine) -> dict[TurnId, int]:
        """The engine's process ends; it comes back as ``engine``. The turns that ran, with their output tokens as
        last told."""
        self.busy_seconds = self.busy_seconds_until(now)
        self.step_ends_at, self.is_up = None, False
        engine.counters, engine.cache.counters = self.engine.counters, self.engine.cache.counters
        self.engine = engine
        lost = {running.turn: running.output_tokens for running in self._turns.values()}
        self._turns.clear()
        self._watched.clear()
        return lost
