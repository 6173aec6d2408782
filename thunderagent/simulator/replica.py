"""One emulated engine on the virtual clock."""

from __future__ import annotations

import math
from collections.abc import Hashable

from attrs import define, field

from thunderagent.core.ids import BackendId, TurnId
from thunderagent.emulator.counters import EngineCounters
from thunderagent.emulator.engine import Engine, EngineRequest, EngineSettings, TokenOutput
from thunderagent.emulator.extents import ExtentCache, Path
from thunderagent.emulator.timing import Preset

__all__ = ["Replica", "new_engine"]

_BLOCK_TOKENS = 16


def new_engine(preset: Preset, kv_tokens: int) -> Engine:
    """An engine with an empty cache of ``kv_tokens``, rounded down to blocks."""
    blocks = kv_tokens // _BLOCK_TOKENS + 1
    settings = EngineSettings(
        blocks,
        _BLOCK_TOKENS,
        preset.max_num_seqs,
        preset.max_num_batched_tokens,
    )
    engine = Engine(settings, preset.timing, ExtentCache(blocks, _BLOCK_TOKENS))
    engine.counters = _NoHistograms()
    return engine


class _NoHistograms(EngineCounters):
    """Counts preemptions only: nobody asks a simulated engine for its metrics page."""

    def step_finished(self, scheduled_tokens: int, generated_tokens: int) -> None: ...

    def first_token(self, prompt_tokens: int, cached_tokens: int, seconds: float) -> None: ...

    def next_tokens(self, tokens: int, seconds: float) -> None: ...

    def finished(
        self, reason: str, prompt_tokens: int, generated_tokens: int, queued_seconds: float, seconds: float
    ) -> None: ...


@define(eq=False)
class Replica:
    """Steps an engine: the simulation asks when the step under way ends and comes back then."""

    id: BackendId
    engine: Engine
    most_seconds: float = math.inf
    """A step that only decodes ends after this at the latest, so that progress can be told."""
    step_ends_at: float | None = None
    """None: no step is under way."""
    _step_began_at: float = 0.0
    _is_delivering: bool = False
    busy_seconds: float = 0.0
    """Time in steps."""
    is_up: bool = True
    """Whether it takes turns; a dead one refuses connections."""
    output_tokens: dict[TurnId, int] = field(factory=dict)
    """Of the turns that run here, as of the last step that ended."""

    def submit(
        self,
        turn: TurnId,
        prompt_tokens: int,
        output_tokens: int,
        content: tuple[tuple[Hashable, int], ...],
        now: float,
    ) -> None:
        """A turn comes in. ``content``: segments of the prompt and answer, with the tokens of each."""
        path, start = [], 0
        for name, tokens in content:
            end = start + tokens
            path.append((name, end // _BLOCK_TOKENS - start // _BLOCK_TOKENS))
            start = end
        self.engine.add(EngineRequest(str(turn), prompt_tokens, output_tokens, Path(tuple(path))), now)
        self.output_tokens[turn] = 0
        if self.step_ends_at is not None:
            ends_at = self._step_began_at + self.engine.shorten_step(now - self._step_began_at)
            self.step_ends_at = max(now, ends_at)
        elif not self._is_delivering:
            self._begin(now)

    def end_step(self, now: float) -> list[TokenOutput]:
        """The tokens of the step that ends now; call ``resume`` when they are dealt with."""
        self.busy_seconds += now - self._step_began_at
        self.step_ends_at, self._is_delivering = None, True
        outputs = self.engine.end_step(now).outputs
        counts = self.output_tokens
        for output in outputs:
            counts[TurnId(int(output.request_id))] += output.tokens
        return outputs

    def resume(self, now: float) -> None:
        """Begin the next step."""
        self._is_delivering = False
        self._begin(now)

    def busy_seconds_until(self, now: float) -> float:
        """Time in steps, that under way included."""
        return self.busy_seconds + (now - self._step_began_at if self.step_ends_at is not None else 0.0)

    def finish(self, turn: TurnId) -> int:
        """A turn is over; its output tokens."""
        return self.output_tokens.pop(turn)

    def die(self, now: float, engine: Engine) -> dict[TurnId, int]:
        """The engine's process ends; it comes back as ``engine``. The turns that ran, with their output tokens."""
        self.busy_seconds = self.busy_seconds_until(now)
        self.step_ends_at, self.is_up = None, False
        engine.counters, engine.cache.counters = self.engine.counters, self.engine.cache.counters
        self.engine = engine
        lost, self.output_tokens = self.output_tokens, {}
        return lost

    def _begin(self, now: float) -> None:
        duration = self.engine.begin_step(now, self.most_seconds)
        if duration is not None:
            self._step_began_at, self.step_ends_at = now, now + duration
