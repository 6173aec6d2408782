"""``--record``: what stands in a line, what is left out, and a disk that is full."""

from __future__ import annotations

from pathlib import Path

import pytest

from thunderagent.core.ids import BranchId, ProgramId
from thunderagent.core.usage import Usage
from thunderagent.errors import ConfigError
from thunderagent.telemetry.recording import Recorder
from thunderagent.trace import TraceTurn, read_trace

MAIN, OTHER = BranchId("main"), BranchId("other")


def recorder(path: Path) -> Recorder:
    made = Recorder(path, began_at=100.0)
    made.open()
    return made


def record(to: Recorder, program: str | None, arrived_at: float, ended_at: float, usage: Usage | None,
           branch: BranchId = MAIN) -> None:  # fmt: skip
    name = None if program is None else ProgramId(program)
    to.record(name, branch, "m", arrived_at=arrived_at, ended_at=ended_at, usage=usage)


def test_turns_are_written_as_they_were(tmp_path: Path) -> None:
    """Times from the beginning; a tool time per conversation, none for one-off turns."""
    path = tmp_path / "turns.jsonl"
    made = recorder(path)
    record(made, "p", 101.0, 103.0, Usage(50, 5, None))
    record(made, "p", 103.5, 104.0, Usage(20, 2, 0), OTHER)
    record(made, "p", 105.0, 106.0, Usage(70, 6, 55))
    record(made, None, 105.5, 107.0, Usage(9, 1, None))
    record(made, None, 108.0, 109.0, Usage(9, 1, None))
    made.close()
    assert list(read_trace(path)) == [
        TraceTurn("p", 1.0, 50, 5, 3.0, "main", None, None, "m"),
        TraceTurn("p", 3.5, 20, 2, 4.0, "other", 0, None, "m"),
        TraceTurn("p", 5.0, 70, 6, 6.0, "main", 55, 2.0, "m"),
        TraceTurn(None, 5.5, 9, 1, 7.0, "main", None, None, "m"),
        TraceTurn(None, 8.0, 9, 1, 9.0, "main", None, None, "m"),
    ]


def test_turn_without_usage_is_left_out_and_the_next_knows_its_end(tmp_path: Path) -> None:
    """Nobody knows its size; its time is known."""
    path = tmp_path / "turns.jsonl"
    made = recorder(path)
    record(made, "p", 101.0, 103.0, None)
    record(made, "p", 104.0, 105.0, Usage(70, 6, 99))
    made.close()
    (turn,) = read_trace(path)
    assert (turn.tool_seconds, turn.cached_tokens) == (1.0, 70), "more cached than there is cannot be"


def test_file_that_exists_is_kept(tmp_path: Path) -> None:
    """A recording is never overwritten."""
    path = tmp_path / "turns.jsonl"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="exists already"):
        recorder(path)
    assert path.read_text() == "precious"


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    """Told with its path."""
    with pytest.raises(ConfigError, match=r"--record .*none.*: No such file"):
        recorder(tmp_path / "none" / "turns.jsonl")


def test_full_disk_costs_no_turn(tmp_path: Path) -> None:
    """The recording ends; turns go on."""
    made = Recorder(Path("/dev/full"), began_at=100.0)
    made._file = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
    record(made, "p", 101.0, 103.0, Usage(50, 5, None))
    assert made._file is None
    record(made, "p", 104.0, 105.0, Usage(50, 5, None))
