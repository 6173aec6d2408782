"""The emulated engine against vLLM's own scheduler and KV cache manager, step by step on the same requests.

Compared after every step: the batch and its tokens, admissions with their cached tokens, preemptions, ends, the order
of running and waiting requests, and what the free blocks hold in the order of their eviction; at the end the
counters. A scenario also says what vLLM does in it, so that it cannot pass without showing what it is for.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import attrs
import pytest
from engine_differential import (
    Abort,
    Arrival,
    Load,
    Story,
    agent_load,
    first_difference,
    random_load,
    replay_emulated,
    replay_vllm,
)

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


@cache
def random_loads() -> list[Load]:
    """Made when they are asked for: to collect the other tests takes a second less without them."""
    return [random_load(seed) for seed in range(500)]


@cache
def agent_loads() -> list[Load]:
    """Of few, some and many agents."""
    return [agent_load(seed, agents) for seed, agents in enumerate((4, 6, 8))]


@cache
def loads_ahead() -> list[Load]:
    """Those for an engine that plans a step before it knows the last one's tokens."""
    loads = [*random_loads()[:200], *agent_loads()]
    return [attrs.evolve(load, run_ahead=True, aborts=[], resets=[]) for load in loads]


def span(start: int, count: int) -> list[int]:
    """``count`` tokens that occur nowhere else."""
    return list(range(start, start + count))


P, Q, R = span(1000, 400), span(2000, 400), span(3000, 400)

SCENARIOS: dict[str, Load] = {
    "shared prefix": Load(
        [Arrival("a", P[:40] + Q[:10], span(1, 3)), Arrival("b", P[:40] + R[:10], span(5, 3), step=5)]
    ),
    "reply found by the next turn": Load(
        [Arrival("a", P[:20], Q[:30]), Arrival("b", P[:20] + Q[:30] + R[:10], R[10:12], step=40)]
    ),
    "whole prompt found": Load([Arrival("a", P[:48], [1]), Arrival("b", P[:48], [1], step=3)]),
    "whole prompt found but for a token": Load([Arrival("a", P[:49], [1]), Arrival("b", P[:49], [1], step=3)]),
    "block in part": Load([Arrival("a", P[:40], [1]), Arrival("b", P[:60], [1], step=3)]),
    "oldest evicted first, tail before head": Load(
        [
            Arrival("a", P[:49], [1]),
            Arrival("b", Q[:49], [1], step=2),
            Arrival("c", R[:70], [1], step=4),
            Arrival("d", P[:49], [1], step=6),
            Arrival("e", Q[:49], [1], step=8),
        ],
        num_gpu_blocks=10,
    ),
    "use renews": Load(
        [
            Arrival("a", P[:49], [1]),
            Arrival("b", Q[:49], [1], step=2),
            Arrival("c", P[:49], [2], step=4),
            Arrival("d", R[:70], [1], step=6),
            Arrival("e", P[:49], [1], step=8),
        ],
        num_gpu_blocks=10,
    ),
    "chunks": Load(
        [Arrival("a", P[:150], span(1, 3)), Arrival("b", Q[:40], span(5, 3), step=1)], max_num_batched_tokens=64
    ),
    "preempted and computed again": Load(
        [Arrival("a", P[:60], span(1, 40)), Arrival("b", Q[:60], span(101, 40))], num_gpu_blocks=11
    ),
    "least urgent preempted": Load(
        [Arrival("a", P[:60], span(1, 40), priority=5), Arrival("b", Q[:60], span(101, 40), priority=1)],
        num_gpu_blocks=11,
        policy="priority",
    ),
    "preempted amid the batch gives its budget back": Load(
        [
            Arrival("a", P[:5], span(1, 30), priority=5),
            Arrival("b", Q[:8], span(41, 30), step=3, priority=1),
            Arrival("c", R[:54], [99], step=7),
        ],
        num_gpu_blocks=7,
        max_num_batched_tokens=8,
        policy="priority",
    ),
    "urgent first": Load(
        [
            Arrival("a", P[:20], span(1, 4), priority=9),
            Arrival("b", Q[:20], span(11, 4), priority=3),
            Arrival("c", R[:20], span(21, 4), priority=-1),
            Arrival("d", R[100:120], span(31, 4), priority=3),
        ],
        max_num_seqs=1,
        policy="priority",
    ),
    "aborts": Load(
        [
            Arrival("a", P[:100], span(1, 20)),
            Arrival("b", Q[:100], span(31, 20)),
            Arrival("c", R[:100], span(61, 20)),
            Arrival("d", P[:100], span(91, 3), step=9),
        ],
        max_num_seqs=2,
        max_num_batched_tokens=64,
        aborts=[Abort("c", 1), Abort("b", 2, amid=True), Abort("a", 7)],
    ),
    "full": Load(
        [Arrival("a", P[:90], span(1, 4)), Arrival("b", Q[:90], span(11, 4)), Arrival("c", R[:10], span(21, 4))],
        num_gpu_blocks=10,
    ),
    "all but the reserved block": Load([Arrival("a", P[:20], span(1, 12))], num_gpu_blocks=3),
    "side by side": Load([Arrival("a", P[:50], span(1, 4)), Arrival("b", P[:50], span(11, 4))]),
    "twins": Load(
        [
            Arrival("a", P[:48], span(1, 2)),
            Arrival("b", P[:48], span(11, 20)),
            Arrival("c", Q[:40], [1], step=3),
            Arrival("d", P[:60], [1], step=5),
        ],
        num_gpu_blocks=9,
    ),
    "fits once more is cached": Load(
        [Arrival("a", P[:120], P[120:144]), Arrival("b", P[:132], [1, 2])], num_gpu_blocks=10
    ),
    "first chunk suffices": Load(
        [Arrival("a", P[:100], span(1, 9)), Arrival("b", Q[:100], span(11, 9))],
        num_gpu_blocks=12,
        max_num_batched_tokens=64,
        reserve_full_prompt=False,
    ),
    "no prefix caching": Load(
        [Arrival("a", P[:40], [1]), Arrival("b", P[:40], [1], step=2)], num_gpu_blocks=5, prefix_caching=False
    ),
    "reset": Load(
        [Arrival("a", P[:40], [1, 2]), Arrival("b", P[:40], [1], step=4), Arrival("c", P[:40], [1], step=6)],
        resets=[1, 6],
    ),
}


@pytest.fixture(scope="module")
def vllm() -> dict[str, list[Story]]:
    """vLLM's stories of all loads, by group; one child process for all of them."""
    groups = {
        "scenarios": list(SCENARIOS.values()),
        "random": random_loads(),
        "agents": agent_loads(),
        "ahead": loads_ahead(),
    }
    stories = iter(replay_vllm([load for loads in groups.values() for load in loads]))
    return {name: [next(stories) for _ in loads] for name, loads in groups.items()}


def admitted(story: Story) -> list[Any]:
    """Admissions in order: id and cached tokens."""
    return [tuple(one) for step in story.steps for one in step.admitted]


def preempted(story: Story) -> list[str]:
    """Ids in the order of their preemptions."""
    return [one for step in story.steps for one in step.preempted]


def finished(story: Story) -> list[str]:
    """Ids in the order of their ends."""
    return [one for step in story.steps for one in step.finished]


SHOWS: dict[str, Any] = {
    "shared prefix": lambda story: admitted(story) == [("a", 0), ("b", 32)],
    "reply found by the next turn": lambda story: admitted(story) == [("a", 0), ("b", 48)],
    "whole prompt found": lambda story: admitted(story) == [("a", 0), ("b", 32)],
    "whole prompt found but for a token": lambda story: admitted(story) == [("a", 0), ("b", 48)],
    "block in part": lambda story: admitted(story) == [("a", 0), ("b", 32)],
    "oldest evicted first, tail before head": lambda story: admitted(story)[3:] == [("d", 16), ("e", 16)],
    "use renews": lambda story: admitted(story)[4] == ("e", 48) and story.counters["evictions"] == 2,
    "chunks": lambda story: (
        [step.scheduled for step in story.steps[:4]]
        == [[["a", 64]], [["a", 64]], [["a", 22], ["b", 40]], [["a", 1], ["b", 1]]]
    ),
    "preempted and computed again": lambda story: preempted(story) == ["b"] and admitted(story)[2] == ("b", 48),
    "least urgent preempted": lambda story: preempted(story) == ["a"] and finished(story) == ["b", "a"],
    "preempted amid the batch gives its budget back": lambda story: (
        (story.steps[13].preempted, story.steps[13].scheduled) == (["a"], [["b", 1], ["c", 7]])
    ),
    "urgent first": lambda story: finished(story) == ["c", "b", "d", "a"],
    "aborts": lambda story: finished(story) == ["d"] and admitted(story) == [("a", 0), ("b", 0), ("d", 96)],
    "full": lambda story: story.steps[0].waiting == ["b", "c"] and finished(story) == ["a", "b", "c"],
    "all but the reserved block": lambda story: story.steps[-2].free == [],
    "side by side": lambda story: admitted(story) == [("a", 0), ("b", 48)],
    "twins": lambda story: any(len(step.free) - len({*step.free}) for step in story.steps),
    "fits once more is cached": lambda story: [name for name, _ in admitted(story)[:2]] == ["a", "b"],
    "first chunk suffices": lambda story: story.steps[1].running == ["a", "b"],
    "no prefix caching": lambda story: admitted(story) == [("a", 0), ("b", 0)],
    "reset": lambda story: admitted(story) == [("a", 0), ("b", 32), ("c", 0)],
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_goes_as_in_vllm(vllm: dict[str, list[Story]], name: str) -> None:
    """A rule of vLLM's that the emulated engine follows."""
    story = vllm["scenarios"][list(SCENARIOS).index(name)]
    assert first_difference(story, replay_emulated(SCENARIOS[name])) is None
    assert SHOWS[name](story), story


def test_random_sequences_go_as_in_vllm(vllm: dict[str, list[Story]]) -> None:
    """Growing, branching and repeating conversations on engines too small for them, in both policies."""
    differences = {
        seed: difference
        for seed, (story, load) in enumerate(zip(vllm["random"], random_loads(), strict=True))
        if (difference := first_difference(story, replay_emulated(load)))
    }
    assert differences == {}


def test_random_sequences_are_eventful(vllm: dict[str, list[Story]]) -> None:
    """The random sequences reach what is compared: a generator of idle engines would agree as well."""
    stories = vllm["random"]
    assert sum(len(story.steps) for story in stories) > 50_000
    assert sum(len(preempted(story)) for story in stories) > 500
    assert sum(story.counters["evictions"] for story in stories) > 10_000
    assert sum(story.counters["hits_tokens"] for story in stories) > 200_000
    assert sum(story.counters["preempted_hits_tokens"] for story in stories) > 50_000
    assert sum(bool(load.aborts) for load in random_loads()) > 50


def test_agents_go_as_in_vllm(vllm: dict[str, list[Story]]) -> None:
    """The load that the router is for, at a size as of a small engine."""
    for story, load in zip(vllm["agents"], agent_loads(), strict=True):
        assert first_difference(story, replay_emulated(load)) is None


def test_planning_ahead_makes_little_difference(vllm: dict[str, list[Story]]) -> None:
    """What the emulated engine leaves out: vLLM on a GPU plans a step before it knows the last one's tokens.

    A request that ended holds its blocks for a step more. docs/architecture.md gives the sizes of the difference.
    """
    theirs = vllm["ahead"]
    ours, agents = [replay_emulated(load) for load in loads_ahead()], len(agent_loads())
    for story, emulated in zip(theirs[-agents:], ours[-agents:], strict=True):
        assert hit_ratio([emulated]) == pytest.approx(hit_ratio([story]), abs=0.001)
        assert finished(emulated) == finished(story)
    theirs, ours = theirs[:-agents], ours[:-agents]
    assert hit_ratio(ours) == pytest.approx(hit_ratio(theirs), abs=0.005)
    assert batches(ours) == pytest.approx(batches(theirs), rel=0.01)
    preemptions = [sum(len(preempted(story)) for story in stories) for stories in (ours, theirs)]
    assert preemptions[0] == pytest.approx(preemptions[1], rel=0.1)
    same_order = sum(finished(story) == finished(emulated) for story, emulated in zip(theirs, ours, strict=True))
    assert same_order >= 0.75 * len(ours)


def hit_ratio(stories: list[Story]) -> float:
    """Share of looked-up tokens that were found, over all stories."""
    return sum(story.counters["hits_tokens"] for story in stories) / sum(
        story.counters["queries_tokens"] for story in stories
    )


def batches(stories: list[Story]) -> int:
    """Steps that ran something."""
    return sum(bool(step.scheduled) for story in stories for step in story.steps)
