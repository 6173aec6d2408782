"""``--record``: a line per finished turn, sizes and times only, for ``thunderagent simulate --trace``."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import IO

import structlog
from attrs import define, field

from thunderagent.core.ids import BranchId, ProgramId
from thunderagent.core.usage import Usage
from thunderagent.errors import ConfigError
from thunderagent.trace import TraceTurn, encode_turn

__all__ = ["Recorder"]

_log = structlog.get_logger("thunderagent.record")

_KEPT_BRANCHES = 100_000
"""Conversations whose last end is remembered, for the tool time of their next turn; the one unused for longest gives
way."""


@define(eq=False)
class Recorder:
    """Appends turns to a new file. Times are relative to its making."""

    path: Path
    began_at: float = field(factory=time.monotonic)
    _ended_at: dict[tuple[ProgramId | None, BranchId], float] = field(factory=dict)
    _file: IO[bytes] | None = None
    _is_told: bool = False

    def open(self) -> None:
        """Make the file.

        Raises:
            ConfigError: it exists, or cannot be written.
        """
        try:
            self._file = self.path.open("xb")
        except FileExistsError:
            raise ConfigError(f"--record {self.path}: exists already; give a new file or move that one") from None
        except OSError as error:
            raise ConfigError(f"--record {self.path}: {error.strerror}") from None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def record(
        self,
        program: ProgramId | None,
        branch: BranchId,
        model: str | None,
        *,
        arrived_at: float,
        ended_at: float,
        usage: Usage | None,
    ) -> None:
        """Write a turn that was answered whole; times are readings of the monotonic clock.

        One without usage is left out, which is told once: nobody knows how long its prompt was.
        """
        former_at = None
        if program is not None:
            former_at = self._ended_at.pop((program, branch), None)
            self._ended_at[program, branch] = ended_at
            if len(self._ended_at) > _KEPT_BRANCHES:
                del self._ended_at[next(iter(self._ended_at))]
        if self._file is None:
            return
        if usage is None or usage.prompt_tokens < 1:
            if not self._is_told:
                self._is_told = True
                _log.warning("record.no_usage", hint="turns without usage are left out; --inject-usage asks for it")
            return
        cached = usage.cached_tokens
        turn = TraceTurn(
            program=program,
            branch=branch,
            model=model,
            arrival=round(max(0.0, arrived_at - self.began_at), 4),
            end=round(max(0.0, arrived_at - self.began_at, ended_at - self.began_at), 4),
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=None if cached is None else min(max(cached, 0), usage.prompt_tokens),
            output_tokens=max(0, usage.completion_tokens),
            tool_seconds=None if former_at is None else round(max(0.0, arrived_at - former_at), 4),
        )
        try:
            self._file.write(encode_turn(turn))
            self._file.flush()
        except OSError as error:  # a full disk must not cost a turn
            _log.warning("record.write_failed", path=str(self.path), error=error.strerror)
            self.close()
