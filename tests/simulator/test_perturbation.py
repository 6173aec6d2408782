"""What differs from what the router believes, and that it differs by what was asked for."""

from __future__ import annotations

import pickle
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from simulations import arrival, simulate, talk

from thunderagent.core import events
from thunderagent.errors import ConfigError
from thunderagent.simulator.incidents import Addition
from thunderagent.simulator.perturbation import Perturbation, changed_of, parse_perturbation
from thunderagent.simulator.programs import Conversation, Program
from thunderagent.simulator.rare_tools import with_rare_tools
from thunderagent.simulator.scenario import Scenario, parse_arm, run
from thunderagent.simulator.simulation import Simulation
from thunderagent.trace import TraceTurn, encode_turn

SMALL = Scenario(sessions=10, kv_tokens=150_000, horizon_seconds=200.0, warmup_seconds=20.0)


def observed(simulation: Simulation) -> list[tuple[float, events.BackendObserved]]:
    entries = simulation._scheduler.journal.entries()
    return [(at, event) for at, event, _ in entries if isinstance(event, events.BackendObserved)]


@pytest.mark.parametrize("off", [0.0, 0.15, 0.25])
def test_estimates_are_off_up_and_down_by_as_much(off: float) -> None:
    """First estimates of 64 programs, at 4 bytes per token, spread evenly within the ratio."""
    programs = [arrival(talk((10_000, 1, 0.0)), session=number) for number in range(64)]
    simulation, _ = simulate(programs, horizon_seconds=0.01, perturbation=Perturbation(estimate=off))
    estimates = [
        event.body_bytes / 40_000 - 1
        for _, event, _ in simulation._scheduler.journal.entries()
        if isinstance(event, events.TurnArrived)
    ]
    assert len(estimates) == 64
    assert min(estimates) == pytest.approx(-off, abs=0.02)
    assert max(estimates) == pytest.approx(off, abs=0.02)
    assert sum(estimates) / 64 == pytest.approx(0.0, abs=0.01)
    assert sorted(estimates)[16] == pytest.approx(-off / 2, abs=0.02)


@pytest.mark.parametrize(("off", "believed"), [(0.1, 17_600), (-0.1, 14_400)])
def test_router_believes_another_capacity_than_the_engines_have(off: float, believed: int) -> None:
    """Those that join later, too."""
    simulation, _ = simulate(
        [arrival(talk((16, 1000, 0.0)))], incidents=(Addition(1, 1.0),), perturbation=Perturbation(capacity=off)
    )
    assert [backend.capacity_tokens for backend in simulation._scheduler.cluster.backends] == [believed] * 2
    assert [replica.engine.cache.usable_tokens for replica in simulation._replicas] == [16_000] * 2


def test_metrics_come_late() -> None:
    """What was so at 5 s is told at 12: one turn ran. The second one, of 21 s, is not heard of by 31 s."""
    two = [arrival(talk((16, 900, 0.0))), arrival(talk((16, 1000, 0.0)), at=21.0, session=1)]
    simulation, _ = simulate(two, perturbation=Perturbation(metrics_delay_seconds=7.0))
    told = [(at, event.requests_running) for at, event in observed(simulation)]
    assert told == [(12.0, 1), (17.0, 0), (22.0, 0), (27.0, 0)]


def test_without_metrics_only_the_capacity_is_known() -> None:
    """Also of a replica that joins."""
    arrivals = [arrival(talk((16, 2000, 0.0)))]
    without = Perturbation(has_metrics=False)
    simulation, _ = simulate(arrivals, incidents=(Addition(1, 6.0),), perturbation=without)
    assert [(at, event.capacity_tokens, event.kv_usage_ratio) for at, event in observed(simulation)] == [
        (6.0, 16_000, None)
    ]
    assert [backend.capacity_tokens for backend in simulation._scheduler.cluster.backends] == [16_000] * 2


def test_burst_comes_at_half_of_the_horizon() -> None:
    """Each a session with one program from its beginning; the others are as before."""
    scenario = evolve(SMALL, perturbation=Perturbation(burst_programs=3))
    plain, arrivals = SMALL.arrivals(), scenario.arrivals()
    burst = arrivals[len(plain) :]
    assert [one.at for one in burst] == [100.0] * 3
    assert len({one.session for one in arrivals}) == 13
    assert [len(list(islice(one.programs, 5))) for one in burst] == [1, 1, 1]
    for one, other in zip(arrivals[: len(plain)], plain, strict=True):
        assert (one.at, next(one.programs)) == (other.at, next(other.programs))


def test_one_tool_of_a_hundred_takes_long() -> None:
    """Those of sub-agents as well; what passes after a one-off turn is none."""
    child = talk(*[(5, 1, 2.0)] * 10)
    parent = talk(*[(5, 1, 2.0)] * 10)
    parent = evolve(parent, turns=(evolve(parent.turns[0], sub_agents=(child,)), *parent.turns[1:]))
    one_off = Program(talk(*[(5, 1, 2.0)] * 10), is_one_off=True)

    def drawn(seed: int) -> list[Program]:
        (session,) = with_rare_tools([arrival(*[Program(parent), one_off] * 1000)], 30.0, seed)
        return list(session.programs)

    def tools(conversation: Conversation) -> list[float]:
        own = [turn.tool_seconds for turn in conversation.turns]
        return own + [each for turn in conversation.turns for sub in turn.sub_agents for each in tools(sub)]

    programs = drawn(0)
    assert programs == drawn(0) != drawn(1)
    assert programs[1::2] == [one_off] * 1000
    found = [each for program in programs[::2] for each in tools(program.conversation)]
    assert len(found) == 20_000
    assert set(found) == {2.0, 30.0}
    assert found.count(30.0) == pytest.approx(200, rel=0.25)


def test_long_tools_are_measured_by_the_median_of_the_workload_or_trace(tmp_path: Path) -> None:
    """1 s of swe-agent, 0.3 s of coding-long; of a trace, the middle one of its gaps."""

    def longest(scenario: Scenario) -> float:
        found = evolve(scenario, perturbation=Perturbation(tools=100_000.0)).arrivals()
        programs = [program for one in found for program in islice(one.programs, 40)]
        return max(turn.tool_seconds for program in programs for turn in program.conversation.turns)

    assert longest(SMALL) == 100_000.0
    assert longest(Scenario("coding-long")) == 30_000.0
    turns = [
        TraceTurn(program=f"p{number % 4}", arrival=float(number), end=number + 0.5, prompt_tokens=500 + number,
                  output_tokens=20, tool_seconds=3.5 if number >= 4 else None)
        for number in range(4000)
    ]  # fmt: skip
    path = tmp_path / "trace.jsonl"
    path.write_bytes(b"".join(map(encode_turn, turns)))
    assert longest(Scenario("trace", trace=path)) == 350_000.0
    with pytest.raises(ConfigError, match="a trace has its own programs"):
        Scenario("trace", trace=path, perturbation=Perturbation(burst_programs=1))


@pytest.mark.parametrize(
    "texts",
    [["estimate=0.25"], ["capacity=0.1"], ["capacity=-0.1"], ["metrics-delay=30"], ["metrics=off"], ["burst=8"],
     ["tools=100"]],
)  # fmt: skip
def test_same_seed_same_figures(texts: list[str]) -> None:
    """Also after a journey to another process."""
    scenario = evolve(SMALL, perturbation=parse_perturbation(texts))
    assert changed_of(scenario.perturbation) == texts
    found = run(scenario, parse_arm("pause-resume"))
    assert found == run(pickle.loads(pickle.dumps(scenario)), parse_arm("pause-resume"))
    assert found.bound_share <= 1.0
    assert 0 <= found.idle_kv_share <= 1.0


def test_what_is_said_as_it_is_changes_nothing() -> None:
    """Figures as without a perturbation; none is told."""
    perturbation = parse_perturbation(["estimate=0.15", "capacity=0", "metrics-delay=0", "metrics=on", "burst=0"])
    assert perturbation == Perturbation()
    assert changed_of(perturbation) == []
    assert run(evolve(SMALL, perturbation=perturbation), parse_arm("affinity")) == run(SMALL, parse_arm("affinity"))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"estimate": 1.0}, "at least 0 and below 1, got 1"),
        ({"estimate": float("nan")}, "at least 0 and below 1"),
        ({"capacity": -1.0}, "above -1 and at most 10, got -1"),
        ({"capacity": float("inf")}, "above -1 and at most 10"),
        ({"metrics_delay_seconds": -1.0}, "at least 0, got -1"),
        ({"metrics_delay_seconds": float("inf")}, "at least 0, got inf"),
        ({"burst_programs": -1}, "between 0 and 1,000,000 programs, got -1"),
        ({"tools": 0.0}, "above 0 and at most 1,000,000, got 0"),
        ({"tools": float("nan")}, "above 0 and at most"),
        ({"metrics_delay_seconds": 1.0, "has_metrics": False}, "without metrics nothing is late"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], text: str) -> None:
    """With what is allowed."""
    with pytest.raises(ConfigError, match=text):
        Perturbation(**values)


@pytest.mark.parametrize(
    ("texts", "text"),
    [
        (["weather=1"], "NAME one of estimate, capacity, metrics-delay, metrics, burst, tools"),
        (["estimate"], "'' is not a ratio"),
        (["burst=1.5"], "'1.5' is not a number of programs"),
        (["metrics=none"], "'none' is not on or off"),
        (["tools=5", "tools=6"], "tools is given twice"),
    ],
)
def test_text_that_is_none(texts: list[str], text: str) -> None:
    """Which, and what would be one."""
    with pytest.raises(ConfigError, match=text):
        parse_perturbation(texts)
