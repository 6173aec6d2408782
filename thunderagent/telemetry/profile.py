"""Per-program timing of turns (``--profile``): prefill, decode, pause and tool times, kept and written as CSV."""

from __future__ import annotations

import csv
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

import structlog
from attrs import define, field, frozen

from thunderagent.core.ids import ProgramId
from thunderagent.core.usage import Usage
from thunderagent.errors import ConfigError

__all__ = ["COLUMNS", "Profiler", "TurnTiming"]

_log = structlog.get_logger("thunderagent.profile")

COLUMNS = (
    "program_id",
    "step_id",
    "prefill_s",
    "decode_s",
    "pause_s",
    "tool_call_s",
    "kv_hit_rate",
    "completed_at",
)

_KEPT_PROGRAMS = 10_000
"""Profiles kept in memory; the one unused for longest gives way. The CSV has all."""


@frozen
class TurnTiming:
    """Readings of the wall's monotonic clock for one finished turn; ``first_byte_at`` None: no body came."""

    arrived_at: float
    forwarded_at: float
    first_byte_at: float | None
    ended_at: float


@define(eq=False)
class _Profile:
    """Sums over a program's turns, in seconds; averages are taken when asked."""

    steps: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    pause_seconds: float = 0.0
    tool_seconds: float = 0.0
    tools: int = 0
    hit_ratios: float = 0.0
    hit_samples: int = 0
    last_ended_at: float | None = None

    def averages(self) -> dict[str, float | int | None]:
        """The published fields."""

        def mean(total: float, count: int) -> float | None:
            return round(total / count, 4) if count else None

        return {
            "step_count": self.steps,
            "avg_prefill_s": mean(self.prefill_seconds, self.steps),
            "avg_decode_s": mean(self.decode_seconds, self.steps),
            "avg_pause_s": mean(self.pause_seconds, self.steps),
            "avg_tool_call_s": mean(self.tool_seconds, self.tools),
            "avg_kv_hit_rate": mean(self.hit_ratios, self.hit_samples),
        }


@define(eq=False)
class Profiler:
    """Keeps profiles and appends a row per turn to ``step_profiles.csv`` in ``directory``."""

    directory: Path
    _profiles: dict[ProgramId, _Profile] = field(factory=dict)
    _file: IO[str] | None = None

    def open(self) -> None:
        """Open the file, with a header if it is new.

        Raises:
            ConfigError: the directory cannot be written.
        """
        path = self.directory / "step_profiles.csv"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", newline="", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--profile-dir {self.directory}: {error.strerror}") from None
        if self._file.tell() == 0:
            csv.writer(self._file).writerow(COLUMNS)
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def record(self, program: ProgramId, timing: TurnTiming, usage: Usage | None) -> None:
        """Take one finished turn into account. Pause = arrival to start, tool = end of a turn to the next arrival."""
        profile = self._profiles.pop(program, None) or _Profile()
        self._profiles[program] = profile
        if len(self._profiles) > _KEPT_PROGRAMS:
            del self._profiles[next(iter(self._profiles))]
        first_byte_at = timing.ended_at if timing.first_byte_at is None else timing.first_byte_at
        tool_seconds = None
        if profile.last_ended_at is not None:
            tool_seconds = max(0.0, timing.arrived_at - profile.last_ended_at)
            profile.tool_seconds += tool_seconds
            profile.tools += 1
        hit_ratio = None
        if usage is not None and usage.cached_tokens is not None and usage.prompt_tokens:
            hit_ratio = usage.cached_tokens / usage.prompt_tokens
            profile.hit_ratios += hit_ratio
            profile.hit_samples += 1
        profile.steps += 1
        profile.prefill_seconds += first_byte_at - timing.forwarded_at
        profile.decode_seconds += timing.ended_at - first_byte_at
        profile.pause_seconds += timing.forwarded_at - timing.arrived_at
        profile.last_ended_at = timing.ended_at
        self._write(
            program,
            profile.steps,
            first_byte_at - timing.forwarded_at,
            timing.ended_at - first_byte_at,
            timing.forwarded_at - timing.arrived_at,
            tool_seconds,
            hit_ratio,
        )

    def profile(self, program: ProgramId) -> dict[str, float | int | None] | None:
        """A program's averages; None for an unknown one."""
        profile = self._profiles.get(program)
        return None if profile is None else profile.averages()

    def programs(self) -> list[ProgramId]:
        """Those whose averages are kept."""
        return list(self._profiles)

    def _write(self, program: ProgramId, step: int, *values: float | None) -> None:
        if self._file is None:
            return
        cells = ["" if value is None else f"{value:.4f}" for value in values]
        try:
            csv.writer(self._file).writerow([_safe_cell(program), step, *cells, f"{time.time():.3f}"])
            self._file.flush()
        except OSError as error:  # a full disk must not cost a turn; what is in memory goes on
            _log.warning("profile.write_failed", directory=str(self.directory), error=error.strerror)
            self._abandon()

    def _abandon(self) -> None:
        file, self._file = self._file, None
        with suppress(OSError):
            if file is not None:
                file.close()


def _safe_cell(text: str) -> str:
    """Text that a spreadsheet does not take for a formula."""
    return "'" + text if text[:1] in ("=", "+", "-", "@") else text
