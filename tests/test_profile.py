"""Per-program timings: what the averages and the rows of the CSV are made of."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from thunderagent.core.ids import ProgramId
from thunderagent.core.usage import Usage
from thunderagent.errors import ConfigError
from thunderagent.telemetry import profile as profile_module
from thunderagent.telemetry.profile import COLUMNS, Profiler, TurnTiming

PROGRAM = ProgramId("p")
EMPTY = {"avg_prefill_s": None, "avg_decode_s": None, "avg_pause_s": None, "avg_tool_call_s": None}


def _turn(at: float, *, pause: float = 1.0, prefill: float = 2.0, decode: float = 3.0) -> TurnTiming:
    return TurnTiming(at, at + pause, at + pause + prefill, at + pause + prefill + decode)


def _usage(prompt: int, cached: int | None) -> Usage:
    return Usage(prompt_tokens=prompt, completion_tokens=1, cached_tokens=cached)


def _rows(folder: Path) -> list[list[str]]:
    with (folder / "step_profiles.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.fixture
def profiler(tmp_path: Path) -> Profiler:
    """One that writes."""
    made = Profiler(tmp_path / "profiles")
    made.open()
    return made


def test_averages_and_rows_follow_the_published_meaning(profiler: Profiler) -> None:
    """Pause: arrival to start; prefill: to the first byte; decode: to the end; tool: to the next arrival."""
    profiler.record(PROGRAM, _turn(100.0), _usage(10, 5))
    profiler.record(PROGRAM, _turn(110.0, pause=0.0, prefill=1.0, decode=1.0), _usage(10, 10))
    profiler.close()
    assert profiler.profile(PROGRAM) == {
        "step_count": 2,
        "avg_prefill_s": 1.5,
        "avg_decode_s": 2.0,
        "avg_pause_s": 0.5,
        "avg_tool_call_s": 4.0,
        "avg_kv_hit_rate": 0.75,
    }
    heading, first, second = _rows(profiler.directory)
    assert heading == list(COLUMNS)
    assert first[:-1] == ["p", "1", "2.0000", "3.0000", "1.0000", "", "0.5000"]
    assert second[:-1] == ["p", "2", "1.0000", "1.0000", "0.0000", "4.0000", "1.0000"]
    assert float(second[-1]) > 1_600_000_000, "the last column is Unix time"


def test_turn_without_body_or_usage_counts_without_inventing(profiler: Profiler) -> None:
    """No first byte: all of it was prefill. No usage, or none of the cache: no hit rate."""
    profiler.record(PROGRAM, TurnTiming(0.0, 1.0, None, 4.0), None)
    profiler.record(PROGRAM, _turn(4.0), _usage(10, None))
    profiler.record(PROGRAM, _turn(10.0), _usage(0, 0))
    profiler.close()
    found = profiler.profile(PROGRAM)
    assert found is not None
    assert (found["step_count"], found["avg_kv_hit_rate"], found["avg_tool_call_s"]) == (3, None, 0.0)
    assert [row[2:7] for row in _rows(profiler.directory)[1:2]] == [["3.0000", "0.0000", "1.0000", "", ""]]


def test_first_byte_at_reading_zero_is_a_reading(profiler: Profiler) -> None:
    """A clock may start at zero."""
    profiler.record(PROGRAM, TurnTiming(-2.0, -1.0, 0.0, 5.0), None)
    profiler.close()
    assert _rows(profiler.directory)[1][2:5] == ["1.0000", "5.0000", "1.0000"]


def test_overlapping_turns_give_no_negative_tool_time(profiler: Profiler) -> None:
    """Two turns of one program at once: the second arrived before the first ended."""
    profiler.record(PROGRAM, _turn(100.0), None)
    profiler.record(PROGRAM, _turn(101.0), None)
    profiler.close()
    assert _rows(profiler.directory)[2][5] == "0.0000"


@pytest.mark.parametrize("name", ['=HYPERLINK("x")', "+1", "-1+2", "@sum", "=1,2\u00e9"])
def test_program_id_that_is_a_formula_is_written_as_text(name: str, profiler: Profiler) -> None:
    """Ids come from clients and the file is opened in spreadsheets."""
    profiler.record(ProgramId(name), _turn(0.0), None)
    profiler.close()
    assert _rows(profiler.directory)[1][0] == "'" + name


@pytest.mark.parametrize("name", ["a,b", 'say "hi"', "a=b", "run-1", "\u8d70"])
def test_other_program_ids_survive_the_csv(name: str, profiler: Profiler) -> None:
    """Commas, quotes and other scripts."""
    profiler.record(ProgramId(name), _turn(0.0), None)
    profiler.close()
    assert _rows(profiler.directory)[1][0] == name


def test_second_run_appends_without_a_second_heading(tmp_path: Path) -> None:
    """A restart of the router goes on in the same file."""
    for _ in range(2):
        profiler = Profiler(tmp_path)
        profiler.open()
        profiler.record(PROGRAM, _turn(0.0), None)
        profiler.close()
    assert [row[:2] for row in _rows(tmp_path)] == [list(COLUMNS[:2]), ["p", "1"], ["p", "1"]]


def test_folder_that_cannot_be_made_is_the_operator_s_to_mend(tmp_path: Path) -> None:
    """A file is in the way."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError) as raised:
        Profiler(tmp_path / "taken" / "profiles").open()
    assert str(raised.value) == f"--profile-dir {tmp_path / 'taken' / 'profiles'}: Not a directory"


def test_full_disk_ends_the_file_and_no_turn(profiler: Profiler) -> None:
    """Writing stops, what is kept in memory goes on, and closing is no trouble."""
    profiler.close()
    with Path("/dev/full").open("a", encoding="utf-8") as full:  # every write to it fails: no space left
        profiler._file = full
        profiler.record(PROGRAM, _turn(0.0), None)
        profiler.record(PROGRAM, _turn(10.0), None)
        profiler.close()
        assert full.closed
    found = profiler.profile(PROGRAM)
    assert found is not None
    assert found["step_count"] == 2
    assert _rows(profiler.directory) == [list(COLUMNS)]


def test_profiles_kept_are_bounded_and_the_unused_give_way(
    profiler: Profiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router that lives for months forgets the oldest; the file has all."""
    monkeypatch.setattr(profile_module, "_KEPT_PROGRAMS", 2)
    for name in ("a", "b", "a", "c"):
        profiler.record(ProgramId(name), _turn(0.0), None)
    profiler.close()
    assert profiler.programs() == ["a", "c"]
    assert profiler.profile(ProgramId("b")) is None
    assert [row[0] for row in _rows(profiler.directory)[1:]] == ["a", "b", "a", "c"]


def test_profiler_that_was_not_opened_writes_nothing(tmp_path: Path) -> None:
    """Averages work without a file."""
    profiler = Profiler(tmp_path)
    profiler.record(PROGRAM, _turn(0.0), None)
    assert profiler.profile(PROGRAM) == {
        **EMPTY,
        "step_count": 1,
        "avg_prefill_s": 2.0,
        "avg_decode_s": 3.0,
        "avg_pause_s": 1.0,
        "avg_kv_hit_rate": None,
    }
    assert list(tmp_path.iterdir()) == []
