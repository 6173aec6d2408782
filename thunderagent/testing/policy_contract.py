"""What every scheduling policy must do, as a test class that its author subclasses.

    from thunderagent.testing import PolicyContract

    class TestMyPolicy(PolicyContract):
        make_policy = MyPolicy

``make_policy`` is called without arguments: the class itself, or a function that builds it with options. Run it
with pytest. The tests need no network and no time; the scheduler in them is the one that serves requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from thunderagent.core import events
from thunderagent.core.commands import Command, DecisionRejected, Notice, PolicyFailed, TurnHeld
from thunderagent.core.decisions import Decision, Trigger
from thunderagent.core.events import Event
from thunderagent.core.ids import BackendId
from thunderagent.core.policy import BackendView, ClusterView, OptionError, Policy, TurnView, WaiterView
from thunderagent.testing.runs import Agent, ClosedLoop, random_run
from thunderagent.testing.scheduler_driver import SchedulerDriver

__all__ = ["PolicyContract"]

_PATIENCE_SECONDS = 120.0
"""How long a turn may wait for a tick once there is nothing else in its way."""


class PolicyContract:
    """Subclass it with ``make_policy``; see the module's docstring."""

    make_policy: ClassVar[Callable[[], Policy]]

    def _driver(self, capacity_tokens: int | None = None, backends: str = "AB") -> SchedulerDriver:
        driver = _StrictDriver(_Watched(type(self).make_policy()))
        for name in backends:
            driver.add(name, capacity_tokens)
        return driver

    def _finish_all(self, driver: SchedulerDriver) -> None:
        """Let every turn, those that are forwarded meanwhile too, come to its end."""
        for _ in range(10_000):
            if not driver.running:
                return
            driver.finish(min(driver.running), after=0.1)
        raise AssertionError("turns that end bring new ones for ever")

    # What it is

    def test_policy_has_a_name_and_a_sensible_tick(self) -> None:
        """``name`` is its entry point's; ``tick_seconds`` is None or positive."""
        policy = type(self).make_policy()
        assert isinstance(policy, Policy)
        assert isinstance(policy.name, str)
        assert policy.name.strip() == policy.name != ""
        assert policy.tick_seconds is None or policy.tick_seconds > 0

    def test_unknown_option_is_refused_by_name(self) -> None:
        """A typo in ``--policy-option`` stops the start with words for the user."""
        policy = type(self).make_policy()
        try:
            type(policy).from_options({"no-such-option": "1"})
        except OptionError as error:
            message = str(error)
        else:
            message = "accepted"
        assert "no-such-option" in message, f"an unknown option is to be refused by name: {message}"

    # Room

    def test_ample_room_holds_nobody(self) -> None:
        """Twenty programs of three turns, and one-off turns between them, are all forwarded as they come."""
        driver = self._driver(10_000_000)
        for index in range(60):
            driver.arrive(f"p{index % 20}", 1_000 + index, after=0.1)
            driver.arrive(None, 500)
            if index % 2 and driver.running:
                driver.finish(min(driver.running), 1_000, 10)
        assert driver.told(TurnHeld) == []
        self._finish_all(driver)
        driver.close()

    def test_unknown_capacity_is_no_reason_to_hold(self) -> None:
        """Nobody knows what fits, so everything is forwarded."""
        driver = self._driver(None)
        for index in range(30):
            driver.arrive(f"p{index % 10}", 50_000)
        assert driver.told(TurnHeld) == []

    def test_known_and_unknown_capacity_mix(self) -> None:
        """A backend that does not say its capacity stands beside a small one without a failure."""
        driver = self._driver(2_000, "A")
        driver.add("B")
        for index in range(20):
            driver.arrive(f"p{index % 7}", 1_500)
        driver.close()

    def test_freed_room_is_used(self) -> None:
        """When all others are gone, whoever waits has a place soon, and leaves nothing behind."""
        driver = self._driver(10_000, "A")
        for index in range(6):
            driver.arrive(f"p{index}", 4_000)
        driver.arrive(None, 4_000)
        for _ in range(100):
            self._finish_all(driver)
            for name in [entry.id for entry in driver.cluster.program_by_id.values() if entry.is_idle]:
                driver.release(name)
            if not driver.held and not driver.running:
                break
            driver.advance(_PATIENCE_SECONDS / 100)
        assert not driver.held, f"held though the backend is empty: {sorted(driver.held)}"
        driver.close()

    def test_agents_beyond_the_capacity_all_finish(self) -> None:
        """A closed loop of agents that need three times what there is comes to its end."""
        driver = self._driver(10_000)
        agents = [Agent(f"a{index}", 1_000 + 300 * (index % 5), 200, 6, starts_at=index * 0.1) for index in range(30)]
        ClosedLoop(driver, agents).run()
        driver.close()

    # Backends

    def test_turns_wait_for_the_first_backend(self) -> None:
        """An empty cluster raises nothing; a backend that joins takes who waits."""
        driver = self._driver(backends="")
        turns = [driver.arrive("p"), driver.arrive("q"), driver.arrive(None)]
        assert sorted(driver.held) == turns
        driver.add("A", 1_000_000)
        driver.advance(_PATIENCE_SECONDS)
        assert sorted(driver.running) == turns

    def test_turn_goes_only_where_its_model_is_served(self) -> None:
        """Also a second model of one program."""
        driver = self._driver(backends="")
        driver.add("A", 1_000_000, ["m"])
        driver.add("B", 1_000_000, ["n"])
        turns = [driver.arrive(program, model=model) for program in ("p", "q", None) for model in ("m", "n")]
        assert [driver.where.get(turn) for turn in turns] == ["A", "B"] * 3

    def test_programs_of_a_lost_backend_go_on_elsewhere(self) -> None:
        """With their next turn, and back to work when all were lost and one returns."""
        driver = self._driver(1_000_000)
        for index in range(6):
            driver.finish(driver.arrive(f"p{index}", 500))
        driver.send(events.BackendFailed(BackendId("A"), "no answer"))
        for index in range(6):
            turn = driver.arrive(f"p{index}", 600)
            driver.advance(_PATIENCE_SECONDS)
            assert driver.where[turn] == "B"
        driver.send(events.BackendFailed(BackendId("B"), "no answer"))
        self._finish_all(driver)
        turn = driver.arrive("p0", 700)
        driver.send(events.BackendRecovered(BackendId("A")))
        driver.advance(_PATIENCE_SECONDS)
        assert driver.where == {turn: "A"}
        driver.close()

    # Manners

    def test_random_runs_have_no_failure_and_no_rejected_decision(self) -> None:
        """Every event in any order: it does not raise, changes nothing, and decides nothing illegal."""
        for seed in range(5):
            random_run(self._driver(backends=""), seed, steps=120)

    def test_long_run_has_no_failure_and_no_rejected_decision(self) -> None:
        """Nor does it after hundreds of calls: what a policy keeps must not wear out."""
        random_run(self._driver(backends=""), 5, steps=600)

    def test_same_events_bring_the_same_commands(self) -> None:
        """No clock but ``cluster.now``, no chance that is not seeded, no order by address."""
        assert self._commands(3) == self._commands(3)

    def _commands(self, seed: int) -> list[Command]:
        driver = self._driver(backends="")
        random_run(driver, seed, steps=120)
        return driver.commands


class _StrictDriver(SchedulerDriver):
    """Fails where the policy does, not some checks later."""

    def _carry_out(self, command: Command) -> None:
        if isinstance(command, (DecisionRejected, PolicyFailed)):
            raise AssertionError(f"the policy misbehaved: {command}")
        super()._carry_out(command)


class _Watched(Policy):
    """Passes everything on to a policy and checks its answers. A failed check reaches the test as PolicyFailed."""

    name = "watched"

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.buffer_tokens = policy.buffer_tokens
        self.tick_seconds = policy.tick_seconds
        self.on_hold_limit = policy.on_hold_limit

    def rank(self, waiter: WaiterView) -> float:
        rank = self._policy.rank(waiter)
        if not math.isfinite(rank):
            raise AssertionError(f"rank answered {rank!r}, which is not a finite number")
        return rank

    def admit(self, turn: TurnView, cluster: ClusterView) -> BackendId | None:
        before = _fingerprint(cluster)
        chosen = self._policy.admit(turn, cluster)
        _expect_unchanged(before, cluster, "admit")
        eligible = [backend.id for backend in turn.eligible_backends]
        if chosen is not None and chosen not in eligible:
            raise AssertionError(f"admit answered {chosen!r}, eligible are {eligible}")
        return chosen

    def rebalance(self, cluster: ClusterView, trigger: Trigger) -> Sequence[Decision]:
        before = _fingerprint(cluster)
        decisions = list(self._policy.rebalance(cluster, trigger))
        self.wake_at = self._policy.wake_at
        _expect_unchanged(before, cluster, "rebalance")
        return decisions

    def placed(self, turn: TurnView, backend: BackendView, cluster: ClusterView) -> None:
        before = _fingerprint(cluster)
        self._policy.placed(turn, backend, cluster)
        _expect_unchanged(before, cluster, "placed")

    def keep_seconds(self, backend: BackendView, cluster: ClusterView) -> float:
        seconds = self._policy.keep_seconds(backend, cluster)
        if not seconds >= 0:
            raise AssertionError(f"keep_seconds answered {seconds!r}")
        return seconds

    def observe(self, event: Event | Notice, cluster: ClusterView) -> None:
        before = _fingerprint(cluster)
        self._policy.observe(event, cluster)
        _expect_unchanged(before, cluster, "observe")


def _fingerprint(cluster: ClusterView) -> list[Any]:
    """What a policy can see of the cluster."""
    backends = [
        (backend.id, backend.accounted_tokens, backend.free_tokens, backend.program_count, backend.turn_count)
        for backend in cluster.backends
    ]
    waiting = [(waiter.since, waiter.need_tokens, waiter.turn.id, waiter.is_urgent) for waiter in cluster.waiting()]
    paused = [(program.id, program.status, program.need_tokens, program.origin) for program in cluster.paused]
    return [cluster.now, cluster.program_count, backends, waiting, paused]


def _expect_unchanged(before: list[Any], cluster: ClusterView, method: str) -> None:
    after = _fingerprint(cluster)
    if before != after:
        raise AssertionError(f"{method} changed the cluster from {before} to {after}")
