"""No event does more than a bounded part of its work, and what is left is done at once and not forgotten."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from core_policies import Scripted, anywhere, hold

from thunderagent.core.commands import Command, Forward
from thunderagent.core.events import BackendFailed, BackendObserved, BackendRecovered, Tick
from thunderagent.core.settings import SchedulerSettings
from thunderagent.core.unfinished import STEPS_PER_EVENT
from thunderagent.policy import Admit, BackendId, ClusterView, Decision, Pause, ProgramId, Trigger, TurnId, Yield
from thunderagent.testing.scheduler_driver import SchedulerDriver

A, B = BackendId("A"), BackendId("B")


@pytest.fixture(autouse=True)
def without_recounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recount after each of thousands of events takes too long."""
    monkeypatch.setattr(SchedulerDriver, "verify", lambda self: None)


def forwarded(commands: list[Command]) -> list[TurnId]:
    """The turns that were forwarded."""
    return [command.turn for command in commands if isinstance(command, Forward)]


def test_new_place_of_a_program_with_many_held_turns_forwards_a_bounded_part() -> None:
    """The rest at once, but after other events; a turn that comes in between goes its way."""
    driver = SchedulerDriver(Scripted())
    driver.add("A")
    driver.send(BackendFailed(A, "gone"))
    turns = [driver.arrive("p") for _ in range(200)]
    assert len(forwarded(driver.send(BackendRecovered(A)))) == STEPS_PER_EVENT
    assert driver.scheduler.next_deadline() == driver.now
    assert driver.arrive("q") in driver.running
    ticks = 0
    while driver.scheduler.next_deadline() == driver.now:
        assert len(forwarded(driver.send(Tick()))) <= STEPS_PER_EVENT
        ticks += 1
    assert set(turns) <= set(driver.running)
    assert ticks == 3


def test_decision_to_admit_forwards_a_bounded_part_of_the_held_turns() -> None:
    """And the others when it has been asked about them."""
    policy = Scripted(hold, reconsiders=False)
    driver = SchedulerDriver(policy)
    driver.add("A")
    turns = [driver.arrive("p") for _ in range(200)]
    policy.answer, policy.decisions = anywhere, [Admit(ProgramId("p"), A)]
    driver.abandon(driver.arrive("p"))
    assert len(driver.running) <= STEPS_PER_EVENT
    driver.advance(0.0)
    assert set(turns) == set(driver.running)


def test_new_capacity_asks_about_a_bounded_part_of_the_turns_held_at_their_place() -> None:
    """All of them are asked about in the end, each once."""
    policy = Scripted(reconsiders=False)
    driver = SchedulerDriver(policy)
    driver.add("A", 100_000)
    for index in range(300):
        driver.arrive(f"p{index}")
    policy.answer = hold
    held = [driver.arrive(f"p{index}") for index in range(300)]
    policy.asked.clear()
    driver.send(BackendObserved(A, None, 200_000))
    assert len(policy.asked) == STEPS_PER_EVENT
    driver.advance(0.0)
    assert policy.asked == held


def test_weaker_trigger_does_not_have_turns_held_for_want_of_a_backend_forgotten() -> None:
    """While 136 of 200 are still to be asked about, another event fills its batch of decisions, too."""
    policy = Scripted(reconsiders=False)
    driver = SchedulerDriver(policy, SchedulerSettings(max_hold_seconds=0.0))
    driver.add("X", None, ["other"])
    driver.add("A", None, ["m"])
    for index in range(64):
        driver.finish(driver.arrive(f"o{index}", model="other"))
    driver.send(BackendFailed(A, "gone"))
    turns = [driver.arrive(f"p{index}", model="m") for index in range(200)]
    driver.send(BackendRecovered(A))
    policy.decisions = [Pause(ProgramId(f"o{index}")) for index in range(64)]
    driver.finish(driver.arrive(None, model="other"))
    driver.advance(10.0)
    assert set(turns) == set(driver.running)


def test_each_trigger_whose_batch_was_cut_off_is_seen_to_again() -> None:
    """A tick's decisions go on after those of the backends."""

    class Batches(Scripted):
        """Pauses, as many as there are, at ticks and when backends change."""

        tick_seconds = 5.0
        left = 0

        def rebalance(self, cluster: ClusterView, trigger: Trigger) -> list[Decision]:
            self.triggers.append(trigger)
            if trigger not in (Trigger.TICK, Trigger.BACKENDS_CHANGED):
                return []
            names = [program.id for program in list(cluster.backends[0].longest_idle_first())[:100]]
            return [Pause(name) for name in names]

    policy = Batches()
    driver = SchedulerDriver(policy)
    driver.add("A")
    for index in range(300):
        driver.finish(driver.arrive(f"p{index}"))
    driver.now += 6.0
    driver.send(Tick())
    driver.send(BackendObserved(A, None, 10**6))
    assert driver.backend("A").program_count == 300 - 2 * STEPS_PER_EVENT
    policy.triggers.clear()
    driver.advance(0.0)
    assert set(policy.triggers) == {Trigger.TICK, Trigger.BACKENDS_CHANGED}
    assert driver.backend("A").program_count == 0


def test_backends_that_a_cut_off_batch_did_not_reach_still_count_as_changed() -> None:
    """The 64 decisions were all about A; B is told as changed until it was its turn."""

    class PerBackend(Scripted):
        """Has all programs of the changed backends yield."""

        is_on = False

        def rebalance(self, cluster: ClusterView, trigger: Trigger) -> Iterator[Decision]:
            changed = list(cluster.changed_backends) if self.is_on else []
            for backend in changed:
                for program in list(backend.longest_idle_first()):
                    yield Yield(program.id)

    policy = PerBackend(lambda turn, cluster: turn.program and BackendId(turn.program.id[0]))
    driver = SchedulerDriver(policy)
    driver.add("A")
    driver.add("B")
    for index in range(100):
        driver.finish(driver.arrive(f"A{index}"))
    running = driver.arrive("B0")
    driver.arrive("A0")
    driver.cluster.changed.update({driver.backend("A"): None, driver.backend("B"): None})
    policy.is_on = True
    driver.finish(running)
    driver.advance(0.0)
    assert driver.backend("B").program_count == 0
    assert [program.id for program in driver.backend("A").groups[0].by_time.values()] == ["A0"]
