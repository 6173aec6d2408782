"""Replicas that die, come back and join: nothing is lost, and the scheduler hears what the daemon would tell it."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import pytest
from attrs import evolve
from simulations import PLAIN, arrival, simulate, talk

from thunderagent.core import events
from thunderagent.core.ids import BackendId
from thunderagent.errors import ConfigError
from thunderagent.health import LOOK_SECONDS
from thunderagent.simulator.counting import figures_of
from thunderagent.simulator.incidents import Addition, Failure, Incident, parse_addition, parse_failure
from thunderagent.simulator.records import OpenTurn
from thunderagent.simulator.scenario import Scenario, parse_arm, run
from thunderagent.simulator.simulation import Simulation

TALK = talk((1000, 200, 1.0), (100, 200, 1.0), (100, 200, 1.0))
"""About 2 s and 1 s for the rest: prompts of 1 s and 0.1 s, answers of 2 s."""


def told(simulation: Simulation, kind: type[object]) -> list[tuple[float, object]]:
    """(time, event) of a kind, of those that the journal remembers."""
    return [(at, event) for at, event, _ in simulation._scheduler.journal.entries() if isinstance(event, kind)]


def test_answer_under_way_is_cut_and_asked_for_again() -> None:
    """One of two replicas dies amid the first answer: the agent sees an error and asks again a second later. That
    answer's first time is the one its wait counts from."""
    simulation, records = simulate([arrival(TALK)], replicas=2, incidents=(Failure(0, 1.5),))
    assert (records.totals.cut_turns, records.totals.resent_turns) == (1, 1)
    assert list(records.replica) == [1, 1, 1]
    assert records.arrived_at[0] == 0.0
    assert records.forwarded_at[0] == pytest.approx(2.5)
    assert records.cached_tokens[0] == 0
    assert [at for at, _ in told(simulation, events.BackendFailed)] == [3.5]


def test_turn_without_a_byte_is_sent_elsewhere_at_once() -> None:
    """A replica dies amid the prefill: no client sees it."""
    simulation, records = simulate([arrival(TALK)], replicas=2, incidents=(Failure(0, 0.5),))
    assert (records.totals.cut_turns, records.totals.resent_turns) == (0, 1)
    assert records.forwarded_at[0] == 0.5
    ((_, failed),) = told(simulation, events.ForwardFailed)
    assert failed == events.ForwardFailed(events.TurnId(failed.turn), "disconnected", sent=True)


def test_failure_is_noticed_as_the_daemon_notices_it() -> None:
    """Idle, by three looks: that of the round, and one each second from then on; it is back with the first look
    after it is up."""
    long = arrival(talk((16, 10, 20.0), (16, 10, 20.0), (16, 10, 0.0)))
    simulation, _ = simulate([long], replicas=2, incidents=(Failure(1, 6.0, 15.5),))
    assert [at for at, _ in told(simulation, events.BackendFailed)] == [12.0]
    assert [at for at, _ in told(simulation, events.BackendRecovered)] == [16.0]


def test_replica_that_cuts_five_answers_is_taken_out_at_once() -> None:
    """As it is by the daemon, and then for 10 s, though it is up again after two."""
    many = [arrival(talk((16, 1000, 0.0), (16, 100, 20.0)), session=number) for number in range(12)]
    simulation, records = simulate(many, replicas=2, incidents=(Failure(0, 5.5, 7.5),))
    assert records.totals.cut_turns == 6
    assert [at for at, _ in told(simulation, events.BackendFailed)] == [5.5]
    assert [at for at, _ in told(simulation, events.BackendRecovered)] == [16.0]
    assert len(records.ended_at) == 24


def test_looks_are_as_far_apart_as_the_daemons() -> None:
    """And all other rules are the same objects."""
    assert Simulation.__attrs_attrs__.observe_seconds.default == LOOK_SECONDS  # type: ignore[attr-defined]


def test_replica_comes_back_empty() -> None:
    """What the program left there is computed again."""
    _, records = simulate([arrival(talk((1000, 10, 30.0), (10, 10, 0.0)))], incidents=(Failure(0, 5.0, 10.0),))
    assert list(records.cached_tokens) == [0, 0]
    assert list(records.known_tokens) == [0, 1010]


def test_without_any_replica_turns_wait() -> None:
    """And are served when one is back; those that nothing served by the end are open."""
    arrivals = [arrival(talk((16, 10, 0.0)), at=20.0 + number, session=number) for number in range(3)]
    _, records = simulate(arrivals, incidents=(Failure(0, 1.0, 60.0),))
    assert records.arrived_at.tolist() == [20.0, 21.0, 22.0]
    assert min(records.forwarded_at) >= 60.0
    arrivals = [arrival(talk((16, 10, 0.0)), at=20.0)]
    _, records = simulate(arrivals, incidents=(Failure(0, 1.0),), horizon_seconds=100.0)
    assert records.open_turns == [OpenTurn(0, 20.0, None, None)]


def test_replicas_that_join_take_programs() -> None:
    """They are told of as an operator's are: with unknown models and capacity, and what they have a look later."""
    arrivals = [arrival(talk((16, 10, 0.0)), at=float(number), session=number) for number in range(40)]
    simulation, records = simulate(arrivals, policy="round-robin", incidents=(Addition(2, 20.5),))
    assert set(records.replica[:20]) == {0}
    assert set(records.replica[21:]) == {0, 1, 2}
    assert records.replicas == 3
    (first, second) = told(simulation, events.BackendAdded)[-2:]
    assert [first[1], second[1]] == [events.BackendAdded(BackendId(f"replica-{number}")) for number in (1, 2)]
    assert {backend.capacity_tokens for backend in simulation._scheduler.cluster.backends} == {16_000}


@pytest.mark.parametrize("policy", ["pause-resume", "affinity", "round-robin", "least-kv"])
def test_every_turn_is_answered_or_open(policy: str) -> None:
    """Under pressure, with two of three replicas dying again and again and one joining: each session's turns are
    those of its programs, once each and in order."""
    plans = [talk(*[(300 + 10 * number, 150, 1.0)] * 12) for number in range(12)]
    arrivals = [arrival(plan, at=number * 0.1, session=number) for number, plan in enumerate(plans)]
    incidents = (
        *(Failure(0, 10.0 + 40 * round, 31.0 + 40 * round) for round in range(5)),
        *(Failure(2, 20.0 + 30 * round, 35.0 + 30 * round) for round in range(6)),
        Addition(1, 90.0),
        Failure(3, 120.0),
    )
    simulation, records = simulate(
        arrivals, policy=policy, replicas=3, kv_tokens=8_000, incidents=incidents, horizon_seconds=3600.0
    )
    assert records.totals.cut_turns > 5
    assert records.totals.resent_turns > 5
    served: dict[int, list[int]] = {number: [] for number in range(12)}
    for program, tokens in zip(records.program, records.prompt_tokens, strict=True):
        served[records.programs[program].session].append(tokens)
    for number, prompts in served.items():
        assert prompts == [(300 + 10 * number) * (turn + 1) + 150 * turn for turn in range(12)]
    assert not records.open_turns
    assert not simulation._turns
    found = figures_of(records, PLAIN, kv_tokens=8_000, warmup_seconds=0.0, target_seconds=5.0)
    assert found.bound_share <= 1.0
    assert found.engine_busy_share <= 1.0
    assert sum(found.per_replica_turns) == 12 * 12


def test_time_without_a_replica_is_no_engine_time() -> None:
    """Busy from begin to end, but for half of it dead: all of the time there was."""
    incidents = (Failure(0, 50.0),)
    _, records = simulate([arrival(talk((16, 9_900, 0.0)))], incidents=incidents, horizon_seconds=100.0)
    found = figures_of(records, PLAIN, kv_tokens=16_000, warmup_seconds=0.0, target_seconds=5.0)
    assert found.engine_busy_share == pytest.approx(1.0)


SMALL = Scenario(sessions=14, replicas=2, kv_tokens=150_000, horizon_seconds=200.0, warmup_seconds=20.0)


@pytest.mark.parametrize("arm", ["pause-resume", "affinity"])
def test_same_seed_same_figures(arm: str) -> None:
    """Also after a journey to another process; what happens after the end changes nothing."""
    late = evolve(SMALL, incidents=(Failure(0, 300.0), Addition(1, 250.0)))
    assert run(late, parse_arm(arm)) == run(SMALL, parse_arm(arm))
    scenario = evolve(SMALL, incidents=(Failure(0, 60.0, 120.0), Addition(1, 150.0)))
    found = run(scenario, parse_arm(arm))
    assert found == run(pickle.loads(pickle.dumps(scenario)), parse_arm(arm))
    assert found.turns < run(SMALL, parse_arm(arm)).turns


def test_texts_are_read() -> None:
    """And written as they were."""
    assert parse_failure("1@60-90.5") == Failure(1, 60.0, 90.5)
    assert parse_failure("0@7") == Failure(0, 7.0)
    assert parse_addition("2@600") == Addition(2, 600.0)


@pytest.mark.parametrize(
    ("incidents", "text"),
    [
        ([Failure(2, 5.0)], "there are replicas 0 to 1 then"),
        ([Failure(2, 5.0), Addition(1, 6.0)], "there are replicas 0 to 1 then"),
        ([Failure(-1, 5.0)], "there are replicas 0 to 1 then"),
        ([Failure(0, 5.0, 5.0)], "must be back after it died"),
        ([Failure(0, 5.0, 20.0), Failure(0, 20.0)], "replica 0 is dead then already"),
        ([Failure(0, 5.0), Failure(0, 500.0)], "replica 0 is dead then already"),
        ([Addition(0, 5.0)], "at least 1 replica joins"),
        ([Failure(0, float("nan"))], "at 0 s or later"),
    ],
)
def test_what_cannot_happen_is_refused(incidents: Sequence[Incident], text: str) -> None:
    """With what is there."""
    with pytest.raises(ConfigError, match=text):
        Scenario(replicas=2, incidents=tuple(incidents))


def test_who_joined_may_fail() -> None:
    """From that time on."""
    Scenario(replicas=2, incidents=(Failure(2, 6.0), Addition(1, 6.0)))
