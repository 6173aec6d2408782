"""A request inside an engine, and the batch that it is part of."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import attrs

from thunderagent.emulator.engine_types import EngineRequest

__all__ = ["LiveSequence", "Refusal", "Step", "room_tokens"]


@attrs.frozen
class Refusal:
    """When it is of use to look again at a waiting sequence that did not fit.

    It lacks as many blocks as others hold beyond the prefix that it shares with them. That number falls only where a
    block comes free or where the first block that it did not find is cached.
    """

    freed_blocks: int
    """``Cache.freed_blocks`` that must be reached."""
    missing: Hashable | None
    """Name of the first block not found; None: all were."""


@attrs.define(eq=False)
class LiveSequence:
    """A request inside the engine, waiting or running."""

    request: EngineRequest
    arrived_at: float
    order: int
    length_tokens: int
    computed_tokens: int = 0
    generated_tokens: int = 0
    told_tokens: int = 0
    """Of those generated, the ones that were put out."""
    scheduled_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    room_tokens: int = 0
    """Up to so many tokens it needs no block and fills none."""
    holding: Any = None
    """Its blocks in the cache; None while it waits."""
    refusal: Refusal | None = None
    """Why it did not fit when it was last looked at; None: look again."""
    started_at: float | None = None
    first_told_at: float | None = None
    told_at: float | None = None
    """When tokens of it were last put out; None: none were."""
    rank: int = 0
    """Its place among those that decode (``Decoders``)."""
    counted_tokens: int = 0
    """``Decoders.tokens`` as of which its own figures are."""

    @property
    def running(self) -> bool:
        return self.holding is not None

    @property
    def decodes(self) -> bool:
        """Whether all that is left for it is a token per step."""
        return self.generated_tokens > 0 and self.length_tokens - self.computed_tokens == 1


def room_tokens(tokens: int, block_size: int) -> int:
    """All but the last token of the block in part after ``tokens``; itself where there is none."""
    in_part = tokens % block_size
    return tokens + block_size - 1 - in_part if in_part else tokens


@attrs.define(eq=False)
class Step:
    """The batch between ``begin_step`` and ``end_step``."""

    batch: list[LiveSequence]
    duration_seconds: float
