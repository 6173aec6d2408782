"""The door itself: events that cannot have happened, the journal, deadlines, and values that can be written down."""

from __future__ import annotations

import json
from enum import Enum
from typing import Any

import attrs
import msgspec
import pytest
from core_policies import Scripted, hold

from thunderagent.core import commands as command_classes
from thunderagent.core import events as event_classes
from thunderagent.core.commands import Command, Forward, PolicyFailed
from thunderagent.core.events import (
    BackendAdded,
    BackendFailed,
    Event,
    ForwardFailed,
    Prefix,
    ProgramReleased,
    Tick,
    TurnAbandoned,
    TurnArrived,
    TurnFinished,
    TurnProgressed,
)
from thunderagent.core.journal import Journal
from thunderagent.core.scheduler import IllegalEvent
from thunderagent.core.settings import SchedulerSettings
from thunderagent.core.usage import Outcome, Usage
from thunderagent.policy import BackendId, BranchId, PrefixKey, ProgramId, TurnId
from thunderagent.testing.runs import random_run
from thunderagent.testing.scheduler_driver import SchedulerDriver

A, MAIN = BackendId("A"), BranchId("main")


@pytest.fixture
def driver() -> SchedulerDriver:
    """Turn 1 runs, turn 2 is held."""
    policy = Scripted()
    driver = SchedulerDriver(policy)
    driver.add("A", 10_000)
    driver.arrive("p")
    policy.answer = hold
    driver.arrive("q")
    return driver


def fingerprint(driver: SchedulerDriver) -> tuple[object, ...]:
    """Everything that an event could have changed."""
    cluster = driver.cluster
    turns = [(turn.id, turn.status, turn.output_tokens) for turn in cluster.turn_by_id.values()]
    programs = [(program.id, program.status) for program in cluster.program_by_id.values()]
    backends = [(b.id, b.is_healthy, b.accounted_tokens) for b in cluster.backend_by_id.values()]
    return cluster.now, turns, programs, backends, len(driver.scheduler.journal.entries())


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (TurnArrived(TurnId(1), None, MAIN, None, 10), "a turn with that id is there already"),
        (TurnProgressed(TurnId(2), 5), "the turn is not forwarded"),
        (TurnFinished(TurnId(2), Outcome.COMPLETED), "the turn is not forwarded"),
        (TurnFinished(TurnId(9), Outcome.COMPLETED), "the turn is not forwarded"),
        (ForwardFailed(TurnId(2), "x", False), "the turn is not forwarded"),
        (TurnAbandoned(TurnId(9)), "the turn is not known"),
        (BackendAdded(A), "the backend is there already"),
        (BackendFailed(BackendId("B"), "x"), "the backend is not known"),
        (event_classes.BackendRemoved(BackendId("B")), "the backend is not known"),
    ],
)
def test_event_that_cannot_have_happened_changes_nothing(driver: SchedulerDriver, event: Event, reason: str) -> None:
    """It raises before anything has changed, and tells what came before."""
    before = fingerprint(driver)
    with pytest.raises(IllegalEvent) as caught:
        driver.send(event, after=5.0)
    assert caught.value.reason == reason
    assert caught.value.event == event
    assert "TurnArrived(turn=2" in str(caught.value)
    assert fingerprint(driver) == before
    driver.verify()


def test_clock_that_goes_back_is_illegal(driver: SchedulerDriver) -> None:
    """Time is the driver's to keep."""
    driver.send(Tick(), after=2.0)
    with pytest.raises(IllegalEvent, match=r"^the clock went from 2\.0 to 1\.0"):
        driver.scheduler.handle(Tick(), 1.0)


def test_finished_turn_cannot_finish_again(driver: SchedulerDriver) -> None:
    """No double decrement."""
    driver.finish(TurnId(1))
    with pytest.raises(IllegalEvent):
        driver.scheduler.handle(TurnFinished(TurnId(1), Outcome.COMPLETED), 0.0)


def test_journal_tells_the_last_events_and_what_came_of_them() -> None:
    """The oldest give way."""
    journal = Journal(length=2)
    for index in range(3):
        journal.record(float(index), ProgramReleased(ProgramId(f"p{index}")), [Forward(TurnId(index), A)] * index)
    assert [entry[0] for entry in journal.entries()] == [1.0, 2.0]
    assert journal.lines() == [
        "1.000 ProgramReleased(program='p1') -> Forward(turn=1, backend='A')",
        "2.000 ProgramReleased(program='p2') -> Forward(turn=2, backend='A'), Forward(turn=2, backend='A')",
    ]
    journal.record(3.0, Tick(), [])
    assert journal.lines()[-1] == "3.000 Tick() -> nothing"


def test_scheduler_writes_every_event_into_its_journal(driver: SchedulerDriver) -> None:
    """With the commands that it returned."""
    entries = driver.scheduler.journal.entries()
    assert [type(event).__name__ for _, event, _ in entries] == ["BackendAdded", "TurnArrived", "TurnArrived"]
    assert [command for _, _, commands in entries for command in commands] == driver.commands


def test_next_deadline_is_the_earliest_of_all() -> None:
    """Held turns, retries, the policy's tick and expiry."""
    policy = Scripted(hold)
    driver = SchedulerDriver(policy, SchedulerSettings(max_hold_seconds=50.0, program_ttl_seconds=40.0))
    assert driver.scheduler.next_deadline() is None
    driver.add("A", 10_000)
    assert driver.scheduler.next_deadline() is None
    driver.arrive("p", after=1.0)
    assert driver.scheduler.next_deadline() == 51.0
    policy.answer = lambda turn, cluster: "A"
    driver.finish(driver.arrive("q", after=1.0), after=1.0)
    assert driver.scheduler.next_deadline() == 43.0
    driver.release("q")
    driver.release("p")
    assert driver.scheduler.next_deadline() is None


def test_policys_tick_counts_from_the_first_event_and_from_each_tick() -> None:
    """A late tick does not lead to a burst of them."""
    policy = Scripted()
    policy.tick_seconds = 5.0
    driver = SchedulerDriver(policy)
    assert driver.scheduler.next_deadline() is None
    driver.now = 10.0
    driver.add("A")
    assert driver.scheduler.next_deadline() == 15.0
    driver.send(Tick(), after=7.0)
    assert driver.scheduler.next_deadline() == 22.0
    assert [trigger.value for trigger in policy.triggers] == ["backends_changed", "tick"]


def test_policy_is_woken_once_at_the_time_it_named() -> None:
    """Though it goes on naming it."""
    policy = Scripted()
    driver = SchedulerDriver(policy)
    policy.wake_at = 7.0
    driver.add("A")
    assert driver.scheduler.next_deadline() == 7.0
    driver.send(Tick(), after=6.0)
    assert (driver.scheduler.next_deadline(), len(policy.triggers)) == (7.0, 1)
    driver.send(Tick(), after=1.5)
    assert [trigger.value for trigger in policy.triggers] == ["backends_changed", "tokens_changed"]
    assert driver.scheduler.next_deadline() is None


def test_event_after_the_time_that_the_policy_named_does_as_well_as_a_tick() -> None:
    """It was asked by then."""
    policy = Scripted()
    driver = SchedulerDriver(policy, settings=SchedulerSettings(program_ttl_seconds=0.0))
    driver.add("A")
    policy.wake_at = 7.0
    turn = driver.arrive("p")
    assert driver.scheduler.next_deadline() == 7.0
    driver.finish(turn, after=8.0)
    assert [trigger.value for trigger in policy.triggers] == ["backends_changed", "tokens_changed", "turn_finished"]
    assert driver.scheduler.next_deadline() is None


@pytest.mark.parametrize("wake_at", ["soon", b"0x", [], float("nan"), float("inf"), -1.0])
def test_time_that_is_none_wakes_nobody_and_costs_no_request(wake_at: Any) -> None:
    """A policy's bug is told; a time that is past, or never comes, is as good as none."""
    policy = Scripted()
    policy.wake_at = wake_at
    driver = SchedulerDriver(policy, settings=SchedulerSettings(program_ttl_seconds=0.0))
    driver.add("A")
    assert driver.arrive("p") in driver.running
    assert driver.scheduler.next_deadline() is None
    assert bool(driver.told(PolicyFailed)) is not isinstance(wake_at, float)


def test_tick_before_its_time_does_nothing(driver: SchedulerDriver) -> None:
    """The driver may wake up early."""
    assert driver.send(Tick(), after=1.0) == []


# Values that can be written down


def encode(value: Any) -> Any:
    """A frozen value as JSON's types, its class beside it."""
    if attrs.has(type(value)):
        fields = {entry.name: encode(getattr(value, entry.name)) for entry in attrs.fields(type(value))}
        return {"": type(value).__name__, **fields}
    if isinstance(value, Enum):
        return {"": type(value).__name__, "value": value.value}
    return [encode(entry) for entry in value] if isinstance(value, tuple) else value


CLASSES: dict[str, Any] = {
    name: getattr(module, name) for module in (event_classes, command_classes) for name in module.__all__
} | {"Usage": Usage, "Outcome": Outcome, "Prefix": Prefix}


def decode(value: Any) -> Any:
    """The other way."""
    if isinstance(value, list):
        return tuple(decode(entry) for entry in value)
    if not isinstance(value, dict):
        return value
    return CLASSES[value[""]](**{name: decode(entry) for name, entry in value.items() if name})


def through_json(value: Event | Command) -> Any:
    """Written to a socket and read again."""
    return decode(json.loads(json.dumps(encode(value))))


EVENTS = [
    TurnArrived(TurnId(1), ProgramId("p"), MAIN, "m", 10, (Prefix(PrefixKey("k"), 4), Prefix(PrefixKey("l"), 5))),
    TurnArrived(TurnId(1), None, MAIN, None, 10),
    TurnProgressed(TurnId(1), 7),
    TurnFinished(TurnId(1), Outcome.CLIENT_GONE, Usage(1, 2, None), 3),
    ForwardFailed(TurnId(1), "reset", True),
    TurnAbandoned(TurnId(1)),
    ProgramReleased(ProgramId("p")),
    BackendAdded(A, ("m", "n"), 100),
    event_classes.BackendObserved(A, ("m",), None, 0.25, 1, 2),
    BackendFailed(A, "x"),
    event_classes.BackendRecovered(A),
    event_classes.BackendDraining(A),
    event_classes.BackendRemoved(A),
    event_classes.PrefixesObserved(A, (event_classes.CachedPrefix(ProgramId("p"), None, 32),)),
    Tick(),
]


def test_list_of_events_is_complete() -> None:
    """Each class of event is written and read below."""
    assert {type(event) for event in EVENTS} == set(Event.__args__)  # type: ignore[attr-defined]


@pytest.mark.parametrize("event", EVENTS)
def test_event_survives_a_round_trip(event: Event) -> None:
    """Equal, of the same class, hashable, and accepted by msgspec as it is."""
    assert through_json(event) == event
    assert hash(through_json(event)) == hash(event)
    assert msgspec.json.encode(event)


def test_commands_of_a_run_survive_a_round_trip_and_replay_gives_the_same() -> None:
    """Events read back from a file bring another scheduler to the same commands."""
    driver, journal = SchedulerDriver(Scripted()), list[tuple[float, Event]]()
    driver.scheduler.journal = Journal(length=100_000)
    random_run(driver, seed=4, steps=150)
    journal = [(now, through_json(event)) for now, event, _ in driver.scheduler.journal.entries()]
    again = SchedulerDriver(Scripted())
    for now, event in journal:
        again.send(event, now - again.now)
    assert again.commands == driver.commands
    assert [through_json(command) for command in driver.commands] == driver.commands
