"""A recorded trace as programs, and files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulations import simulate

from thunderagent.simulator.replay import programs_of
from thunderagent.trace import TraceError, TraceTurn, encode_turn, read_trace


def turn(program: str | None, arrival: float, end: float, prompt: int, output: int = 10, **more: object) -> TraceTurn:
    return TraceTurn(program=program, arrival=arrival, end=end, prompt_tokens=prompt, output_tokens=output, **more)


def test_turns_go_through_a_file(tmp_path: Path) -> None:
    """A line each, whatever is not set left out."""
    turns = [turn("a", 0.0, 1.0, 100, cached_tokens=0), turn("a", 2.0, 3.0, 150, tool_seconds=1.0, branch="b")]
    path = tmp_path / "trace.jsonl"
    path.write_bytes(b"\n".join(map(encode_turn, turns)))
    assert list(read_trace(path)) == turns
    assert b"branch" not in path.read_bytes().splitlines()[0]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "the line is cut off: delete it"),
        ('{"program": "a"}', "missing required field `arrival`"),
        ('{"program": "a", "arrival": 0, "end": 1, "prompt_tokens": "1", "output_tokens": 1}', "Expected `int`"),
        ('{"program": "a", "arrival": 2, "end": 1, "prompt_tokens": 1, "output_tokens": 1}', "end not before it"),
        ('{"program": "a", "arrival": 0, "end": 1, "prompt_tokens": 0, "output_tokens": 1}', "at least 1"),
        (
            '{"program": "a", "arrival": 0, "end": 1, "prompt_tokens": 5, "output_tokens": 1, "cached_tokens": 6}',
            "between 0 and prompt_tokens",
        ),
        (
            '{"program": "a", "arrival": 0, "end": 1, "prompt_tokens": 5, "output_tokens": 1, "prompt": "x"}',
            "unknown field `prompt`",
        ),
        ("\xff", "line 2"),
    ],
)
def test_line_that_is_no_turn_is_told_with_its_number(tmp_path: Path, line: str, reason: str) -> None:
    """File, line and reason."""
    path = tmp_path / "trace.jsonl"
    path.write_bytes(encode_turn(turn("a", 0.0, 1.0, 5)) + line.encode("latin-1") + b"\n")
    with pytest.raises(TraceError) as raised:
        list(read_trace(path))
    assert str(raised.value).startswith(f"{path}, line 2: ")
    assert reason in str(raised.value)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    """Named, with the system's reason."""
    with pytest.raises(TraceError, match=r"none\.jsonl: No such file"):
        list(read_trace(tmp_path / "none.jsonl"))


def test_trace_without_a_turn() -> None:
    """Nothing to replay."""
    with pytest.raises(TraceError, match="no turn"):
        programs_of([])


def test_histories_and_gaps_are_those_recorded() -> None:
    """Appended tokens, tool times, a compaction, and a beginning that all found cached."""
    turns = [
        turn("a", 10.0, 11.0, 1000, 50, cached_tokens=400),
        turn("a", 13.0, 14.0, 1100, 50, tool_seconds=2.0, cached_tokens=1040),
        turn("a", 15.0, 16.0, 600, 50, tool_seconds=1.0, cached_tokens=400),
        turn("b", 12.0, 13.0, 700, 20, cached_tokens=480),
    ]
    first, second = programs_of(turns)
    assert (first.at, second.at) == (0.0, 2.0)
    plan = next(first.programs).conversation
    assert [part.tokens for part in plan.shared] == [400]
    told = [(one.new_tokens, one.output_tokens, one.tool_seconds, one.kept_tokens) for one in plan.turns]
    assert told == [(600, 50, 2.0, None), (50, 50, 1.0, None), (200, 50, 0.0, 400)]


def test_sub_agent_runs_in_the_gap_it_ran_in() -> None:
    """Sent 1 s after the first turn's end, done 2 s before the second: that waits for it, and 2 s more."""
    turns = [
        turn("a", 0.0, 1.0, 1000, 50),
        turn("a", 2.0, 5.0, 300, 20, branch="s"),
        turn("a", 7.0, 8.0, 1100, 50, tool_seconds=6.0),
    ]
    (one,) = programs_of(turns)
    plan = next(one.programs).conversation.turns[0]
    assert (plan.tool_seconds, plan.after_seconds) == (0.0, 2.0)
    (child,) = plan.sub_agents
    assert (child.delay_seconds, child.is_awaited, child.turns[0].new_tokens) == (1.0, True, 300)


def test_sub_agent_that_outlasts_the_gap_is_not_waited_for() -> None:
    """The main conversation goes on at its recorded time."""
    turns = [
        turn("a", 0.0, 1.0, 1000, 50),
        turn("a", 2.0, 9.0, 300, 20, branch="s"),
        turn("a", 4.0, 5.0, 1100, 50, tool_seconds=3.0),
    ]
    (one,) = programs_of(turns)
    plan = next(one.programs).conversation.turns[0]
    assert (plan.tool_seconds, plan.after_seconds, plan.sub_agents[0].is_awaited) == (0.0, 3.0, False)


def test_replay_serves_every_turn() -> None:
    """Of programs and of turns alone."""
    turns = [turn(f"p{number % 3}", number, number + 0.5, 100 + 30 * number) for number in range(12)]
    turns += [turn(None, 2.0, 3.0, 50)]
    _, records = simulate(programs_of(turns), policy="pause-resume")
    assert len(records.program) == 13
    assert sorted(records.prompt_tokens) == sorted(one.prompt_tokens for one in turns)
