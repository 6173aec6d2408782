"""When Python's collector of cyclic garbage works: for the daemon in small passes, for a simulation seldom."""

from __future__ import annotations

import gc
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["rare_collections", "small_collections"]

_THRESHOLDS = (700, 10, 2)
"""The first two are Python's own. A full pass comes at the third pass over the middle generation (Python: at the
eleventh, or later), and so looks at some 23,000 objects."""

_WHOLE_PASS_BYTES = 1 << 30

_RARE_THRESHOLDS = (50_000, 20, 20)
"""Where nobody waits for an answer. A pass over the middle generation looks at a million objects at most."""


@contextmanager
def small_collections(
    whole_pass_bytes: int = _WHOLE_PASS_BYTES, resident_bytes: Callable[[], int] | None = None
) -> Iterator[None]:
    """Within it a full pass of the collector looks only at objects that are younger than the one before.

    Python looks at all objects each time. With 10,000 programs, 3,200 of which wait, these are 420,000: 0.28 s each
    10 s, on the machine of docs/benchmarks.md, and all objects were in use. Here what a full pass has left is frozen
    (``gc.freeze``): no longer looked at, and still freed when its last reference goes; passes take 0.01 to 0.03 s.

    What is frozen and becomes a cycle without outer references is found when the process has ``whole_pass_bytes``
    resident, or twice what it had after the last such pass where that is more: then one pass looks at everything.
    ``resident_bytes`` reads that, the process's own by default.
    """
    tenure = _Tenure(whole_pass_bytes, resident_bytes or _resident_bytes)
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    gc.callbacks.append(tenure)
    try:
        yield
    finally:
        gc.callbacks.remove(tenure)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


@contextmanager
def rare_collections() -> Iterator[None]:
    """Within it a pass comes at 50,000 new objects and not at 700: for a long computation whose objects mostly stay.

    A simulation of 64 replicas spends a sixth of its time in the collector otherwise, and next to nothing is garbage.
    """
    thresholds = gc.get_threshold()
    gc.set_threshold(*_RARE_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


class _Tenure:
    """Called by the collector around each of its passes; in the midst of anything, so that it must not log."""

    def __init__(self, whole_pass_bytes: int, resident_bytes: Callable[[], int]) -> None:
        self._least_bytes, self._resident_bytes = whole_pass_bytes, resident_bytes
        self._limit_bytes = max(whole_pass_bytes, 2 * resident_bytes())
        self._is_whole = False
        """Nothing is frozen: the next full pass looks at everything."""

    def __call__(self, phase: str, about: dict[str, Any]) -> None:
        if phase != "stop" or about["generation"] != 2:
            return
        resident_bytes = self._resident_bytes()
        if self._is_whole:
            self._limit_bytes = max(self._least_bytes, 2 * resident_bytes)
        self._is_whole = resident_bytes > self._limit_bytes
        if self._is_whole:
            gc.unfreeze()
        else:
            gc.freeze()


def _resident_bytes() -> int:
    """Memory that this process has resident; where Linux does not say, the most it ever had."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
