"""A recorded trace: one JSON object per line and turn, without prompts. ``serve --record`` writes it, the simulator
replays it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

__all__ = ["TraceError", "TraceTurn", "encode_turn", "read_trace"]


class TraceError(Exception):
    """A file that cannot be read, or a line that is no turn: which, and why."""


class TraceTurn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One finished turn. Times are seconds since the recording began."""

    program: str | None
    """None: a one-off turn, without a program id."""
    arrival: float
    prompt_tokens: int
    output_tokens: int
    end: float
    """When its answer ended."""
    branch: str = "main"
    """The conversation within the program."""
    cached_tokens: int | None = None
    """Prompt tokens found in the prefix cache; None where the backend did not say."""
    tool_seconds: float | None = None
    """From the end of the conversation's turn before to this arrival; None for its first one."""
    model: str | None = None

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.output_tokens < 0:
            raise ValueError("prompt_tokens must be at least 1 and output_tokens at least 0")
        if not 0 <= self.arrival <= self.end < float("inf"):
            raise ValueError("arrival must be at least 0 and end not before it")
        if self.cached_tokens is not None and not 0 <= self.cached_tokens <= self.prompt_tokens:
            raise ValueError("cached_tokens must be between 0 and prompt_tokens")
        if self.tool_seconds is not None and not 0 <= self.tool_seconds < float("inf"):
            raise ValueError("tool_seconds must be at least 0")


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(TraceTurn).decode


def encode_turn(turn: TraceTurn) -> bytes:
    """Its line."""
    return _encode(turn) + b"\n"


def read_trace(path: Path) -> Iterator[TraceTurn]:
    """The turns of a file in its order; empty lines are passed over.

    Raises:
        TraceError: the file cannot be read, a line is no turn, or none is one.
    """
    is_empty = True
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    turn = _decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise TraceError(f"{path}, line {number}: {_reason(error, is_first=is_empty)}") from None
                is_empty = False
                yield turn
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None
    if is_empty:
        raise TraceError(f"{path}: the trace has no turn")


def _reason(error: Exception, *, is_first: bool) -> str:
    """Why a line is no turn, and what to do. Where the first one is none, the file is of another kind."""
    if is_first:
        return f"{error}; a trace is a file that `thunderagent serve --record` wrote"
    return "the line is cut off: delete it" if str(error) == "Input data was truncated" else str(error)
