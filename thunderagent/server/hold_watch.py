"""Says in the log when the hold limit cannot be kept at today's load, what is given instead, and what helps."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any

import structlog
from attrs import define

from thunderagent.core.outlook import Outlook
from thunderagent.core.policy import ROTATION_RATIO
from thunderagent.core.settings import OnHoldLimit
from thunderagent.gateway import Gateway

__all__ = ["HoldLimitWatch"]

_log = structlog.get_logger("thunderagent.holding")

_LOOK_SECONDS = 5.0
_LASTING_SECONDS = 30.0
"""What has not lasted for so long is not told; so neither line comes more often."""
_CALM_RATIO = 0.8 * ROTATION_RATIO
"""The limit counts as kept again when this share is enough: a load that hovers about the bound is told of once."""


@define(eq=False)
class HoldLimitWatch:
    """Looks at the outlook now and then, and tells when it turned and stayed so. ``now``: wall seconds."""

    gateway: Gateway
    now: Callable[[], float] = time.monotonic
    is_kept: bool = True
    """As was told last."""
    _turned_since: float | None = None
    """Since when each look found the contrary of that."""

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                self.look()
            except Exception:
                _log.exception("hold_limit.look_failed")

    def look(self) -> None:
        """Look once. While nothing is known, what was told last stands; an assumed refill, which the line names, does
        for the warning."""
        found = self.gateway.outlook()
        if found.rotation_ratio is None:
            has_turned = False
        elif self.is_kept:
            has_turned = found.rotation_ratio > ROTATION_RATIO
        else:
            has_turned = found.rotation_ratio <= _CALM_RATIO
        if not has_turned:
            self._turned_since = None
            return
        now = self.now()
        if self._turned_since is None:
            self._turned_since = now
        if now - self._turned_since >= _LASTING_SECONDS:
            self.is_kept, self._turned_since = not self.is_kept, None
            self._tell(found)

    def _tell(self, found: Outlook) -> None:
        scheduler = self.gateway.scheduler
        pressure, hold_seconds, ratio = found.pressure, found.hold_seconds, found.rotation_ratio
        assert pressure is not None
        assert hold_seconds is not None
        assert ratio is not None
        limit_seconds = scheduler.settings.max_hold_seconds
        values: dict[str, Any] = {
            "pressure": round(pressure, 2),
            "max_hold_seconds": limit_seconds,
            "expected_hold_seconds": round(hold_seconds),
            "rotation_ratio": round(ratio, 3),
            "refill_seconds": round(found.refill_seconds, 1),
            "is_refill_known": found.is_refill_known,
        }
        if self.is_kept:
            _log.info("hold_limit.attainable", **values)
            return
        _log.warning(
            "hold_limit.unattainable",
            **values,
            on_hold_limit=scheduler.on_hold_limit.value,
            instead=_instead(scheduler.on_hold_limit, ratio),
            remedy=_remedy(found, limit_seconds, len(scheduler.cluster.backends)),
        )


def _instead(on_hold_limit: OnHoldLimit, ratio: float) -> str:
    """What turns get that reach the limit."""
    match on_hold_limit:
        case OnHoldLimit.HEAD:
            cost = (
                f"prefilling again who made room takes about {100 * ratio:.0f} % of the engines"
                if ratio < 1
                else "the engines cannot prefill as fast as that, so waits go past the limit"
            )
            return f"turns at the limit get the next room, in the order in which they reached it; {cost}"
        case OnHoldLimit.FORCE:
            return (
                "turns at the limit are forwarded over capacity; the engines evict what other programs left, and "
                "prefill it again"
            )
        case OnHoldLimit.REFUSE:
            return "turns at the limit are answered 503 hold_limit; no room is made for them"


def _remedy(found: Outlook, limit_seconds: float, replicas: int) -> str:
    """What would have the limit kept, each by itself: replicas as those that there are, fewer programs of their mean
    size, or a limit that can be kept."""
    assert found.pressure is not None
    assert found.hold_seconds is not None
    bearable = 1 + ROTATION_RATIO * limit_seconds / found.refill_seconds
    missing = math.ceil(replicas * found.pressure / bearable) - replicas
    more = f"{missing} more replica{'' if missing == 1 else 's'}"
    fewer = f"{math.ceil(100 * (1 - bearable / found.pressure))} % fewer agents at once"
    told = f"{more}, {fewer}, or --max-hold-seconds {math.ceil(found.hold_seconds)}"
    if found.is_refill_known:
        return told
    return (
        f"{told}; these take {found.refill_seconds:g} s for the time to fill a cache with prompts, since "
        "neither a streamed answer nor their counters have told yet how fast the engines are"
    )
