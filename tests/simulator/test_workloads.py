"""The workloads are as their documentation says."""

from __future__ import annotations

import itertools
import random

import pytest

from thunderagent.emulator.timing import PRESETS
from thunderagent.simulator.programs import Program
from thunderagent.simulator.workloads import WORKLOADS, Spread, Workload, _from_the_middle, mean_program


def drawn(workload: Workload, count: int = 150) -> list[Program]:
    chance = random.Random(3)
    return [workload.program(chance) for _ in range(count)]


def sizes_of(program: Program) -> list[int]:
    """Prompt tokens of the main turns, in order."""
    found, tokens = [], sum(part.tokens for part in program.conversation.shared)
    for turn in program.conversation.turns:
        tokens = (tokens if turn.kept_tokens is None else turn.kept_tokens) + turn.new_tokens
        found.append(tokens)
        tokens += turn.output_tokens
    return found


def prompts(programs: list[Program]) -> list[int]:
    """Prompt tokens of all main turns, ascending."""
    return sorted(itertools.chain.from_iterable(map(sizes_of, programs)))


@pytest.mark.parametrize(
    ("name", "median", "p90", "per_output"),
    [("swe-agent", 16_000, 28_000, 70), ("coding-long", 85_000, 140_000, 120)],
)
def test_sizes_are_those_it_was_fitted_to(name: str, median: int, p90: int, per_output: int) -> None:
    """Within a tenth."""
    programs = drawn(WORKLOADS[name])
    found = prompts(programs)
    outputs = sum(turn.output_tokens for program in programs for turn in program.conversation.turns)
    assert found[len(found) // 2] == pytest.approx(median, rel=0.1)
    assert found[len(found) * 9 // 10] == pytest.approx(p90, rel=0.1)
    assert sum(found) / outputs == pytest.approx(per_output, rel=0.1)


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_policy_gets_the_same_programs(name: str) -> None:
    """From the seed alone; another seed has others."""

    def beginning(seed: int) -> list[object]:
        arrivals = WORKLOADS[name].arrivals(9, seed)
        return [(one.at, next(one.programs), next(one.releases)) for one in arrivals]

    assert beginning(1) == beginning(1)
    assert beginning(1) != beginning(2)


def test_sessions_begin_amid_their_programs() -> None:
    """So that contexts are mixed from the start."""
    first = [next(one.programs).conversation.turns[0].new_tokens for one in WORKLOADS["swe-agent"].arrivals(50, 0)]
    assert min(first) < 3_000
    assert max(first) > 20_000


def test_cut_program_goes_on_as_the_whole_one_does() -> None:
    """Its prompts are the last ones of that, compactions included."""
    for seed in range(30):
        program = WORKLOADS["coding-long"].program(random.Random(seed))
        cut = _from_the_middle(program, random.Random(seed))
        sizes = sizes_of(cut)
        assert sizes == sizes_of(program)[-len(sizes) :]


def test_groups_share_their_first_prompt() -> None:
    """Eight of a group, and only the system prompt with others."""
    programs = [next(one.programs) for one in WORKLOADS["rl-rollout"].arrivals(16, 0)]
    shared = [program.conversation.shared for program in programs]
    assert len(set(shared)) == 2
    assert shared[0] == shared[7] != shared[8]
    assert shared[0][0] == shared[8][0]
    assert [program.group for program in programs[6:10]] == ["group 0", "group 0", "group 1", "group 1"]


def test_releases_follow_the_ratio() -> None:
    """Half of them."""
    one = WORKLOADS["swe-agent"].arrivals(1, 0, release_ratio=0.5)[0]
    told = [next(one.releases) for _ in range(1000)]
    assert 400 < sum(told) < 600


def test_spread_has_its_quantiles() -> None:
    """Median, 90th percentile and cut-off."""
    chance = random.Random(0)
    values = sorted(Spread(10, 40, 100).draw(chance) for _ in range(10_000))
    assert values[5_000] == pytest.approx(10, rel=0.05)
    assert values[9_000] == pytest.approx(40, rel=0.05)
    assert values[-1] == 100


def test_footprint_lies_between_the_prompts() -> None:
    """A mean over time of what a program holds."""
    for workload in WORKLOADS.values():
        sizes = prompts(drawn(workload))
        found = mean_program(workload, PRESETS[workload.preset], programs=100).own_tokens
        assert sizes[len(sizes) // 4] < found < 2 * sizes[len(sizes) * 9 // 10]
