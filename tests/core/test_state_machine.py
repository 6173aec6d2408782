"""The scheduler under every event in any order, under every policy, the harmful one included.

After each event the scheduler's books are recounted and compared with the driver's own. With the environment
variable ``HYPOTHESIS_PROFILE=long`` the search is long, and another one each time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import pytest
from core_policies import Adversary
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from policies.affinity import Affinity
from policies.least_kv import LeastKv
from policies.pause_resume import PauseResume
from policies.round_robin import RoundRobin
from thunderagent.core import events
from thunderagent.core.events import Prefix
from thunderagent.core.settings import OnHoldLimit, SchedulerSettings
from thunderagent.core.usage import Outcome, Usage
from thunderagent.policy import BackendId, Policy, PrefixKey, ProgramId, TurnId
from thunderagent.testing.runs import random_run
from thunderagent.testing.scheduler_driver import SchedulerDriver

VARIANTS: dict[str, dict[str, str]] = {
    "paper": {"preset": "paper"},
    "paper decay": {"preset": "paper", "resume_decay": "true"},
    "decay": {"resume_decay": "true", "pause_decay": "true", "half_life_seconds": "3"},
    "pause decay": {"pause_decay": "true", "acting_weight": "0.5"},
    "origin": {"resume_on": "origin", "move_after_seconds": "20", "quantum_seconds": "5"},
    "resident": {"resume_on": "resident"},
    "tightest": {"resume_on": "tightest", "pause_order": "largest"},
    "smallest": {"resume_order": "smallest", "ageing_seconds": "30"},
    "rotating": {"resume_order": "first-come", "pause_order": "last-come", "quantum_turns": "2"},
    "one turn": {"turns_per_program": "1"},
    "gauge": {"shared_correction": "usage", "low_watermark": "0.7", "high_watermark": "0.9"},
    "unshared": {"shared_correction": "none", "idle_lease_seconds": "2"},
}
"""Of ``pause-resume``, so that each of its options is on in one of them."""

POLICIES: dict[str, Callable[[], Policy]] = {
    "round-robin": RoundRobin,
    "affinity": Affinity,
    "least-kv": LeastKv,
    "least-kv overflow": lambda: LeastKv.from_options({"overflow": "true"}),
    "pause-resume": PauseResume,
    **{f"pause-resume {name}": partial(PauseResume.from_options, options) for name, options in VARIANTS.items()},
}
LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
EXAMPLES, STEPS, SEEDS = (240, 80, 20) if LONG else (25, 40, 2)
HOLD_SECONDS, WAIT_SECONDS = (1800.0, 2_000.0) if LONG else (180.0, 200.0)
"""The longest limit of a hold, and a wait that passes it and every other limit. Half an hour is for the long profile:
in a search under ``pause-resume`` 59,300 of 59,800 events were the ticks of such waits."""
BACKENDS = st.sampled_from([BackendId(name) for name in "ABC"])
PREFIXES = [Prefix(PrefixKey("system"), 1_200), Prefix(PrefixKey("task"), 800)]
USAGES = st.none() | st.builds(
    Usage,
    prompt_tokens=st.sampled_from([-1, 0, 10, 500, 4_000, 10**9]),
    completion_tokens=st.sampled_from([-1, 0, 50, 10**9]),
    cached_tokens=st.sampled_from([None, -1, 0, 300, 4_000, 10**9]),
)
LIMITS = st.builds(
    SchedulerSettings,
    max_hold_seconds=st.sampled_from([0.0, 20.0, HOLD_SECONDS]),
    on_hold_limit=st.sampled_from(OnHoldLimit),
    program_ttl_seconds=st.sampled_from([0.0, 100.0]),
    branch_ttl_seconds=st.just(30.0),
    max_branches=st.sampled_from([1, 2, 64]),
    max_held_turns=st.sampled_from([3, 100]),
    max_programs=st.sampled_from([3, 100]),
    max_failed_sends=st.sampled_from([0, 1]),
)


STEPS_TAKEN = [0]
"""Steps of all searches so far, each followed by a recount."""


class SchedulerMachine(RuleBasedStateMachine):
    """Sends events; ``SchedulerDriver`` checks each of them."""

    make_policy: ClassVar[Callable[[], Policy]]
    is_lawful: ClassVar[bool] = True
    """Whether the policy decides nothing illegal."""

    @initialize(limits=LIMITS, capacities=st.lists(st.sampled_from([None, 2_000, 20_000]), min_size=1, max_size=3))
    def start(self, limits: SchedulerSettings, capacities: list[int | None]) -> None:
        self.driver = SchedulerDriver(type(self).make_policy(), limits)
        for name, capacity_tokens in zip("ABC", capacities, strict=False):
            self.driver.add(name, capacity_tokens)

    def pick(self, index: int, *, held: bool = False) -> TurnId:
        turns = sorted({**self.driver.running, **(self.driver.held if held else {})})
        return turns[index % len(turns)]

    @rule(
        program=st.sampled_from([None, "p", "q", "r", "s"]),
        branch=st.sampled_from(["main", "sub"]),
        model=st.sampled_from([None, "m", "n"]),
        tokens=st.sampled_from([0, 100, 700, 1_900, 15_000, 30_000]),
        prefixes=st.integers(0, 2),
        after=st.sampled_from([0.0, 0.5]),
    )
    def arrive(
        self, program: str | None, branch: str, model: str | None, tokens: int, prefixes: int, after: float
    ) -> None:
        self.driver.arrive(program, tokens, branch=branch, model=model, prefixes=PREFIXES[:prefixes], after=after)

    @precondition(lambda self: self.driver.running)
    @rule(index=st.integers(0, 99), outcome=st.sampled_from(Outcome), usage=USAGES, output_tokens=st.integers(0, 90))
    def finish(self, index: int, outcome: Outcome, usage: Usage | None, output_tokens: int) -> None:
        self.driver.send(events.TurnFinished(self.pick(index), outcome, usage, output_tokens), 0.25)

    @precondition(lambda self: self.driver.running)
    @rule(index=st.integers(0, 99), output_tokens=st.sampled_from([1, 50, 3_000]))
    def progress(self, index: int, output_tokens: int) -> None:
        self.driver.send(events.TurnProgressed(self.pick(index), output_tokens))

    @precondition(lambda self: self.driver.running)
    @rule(index=st.integers(0, 99), sent=st.booleans())
    def fail(self, index: int, sent: bool) -> None:
        self.driver.fail(self.pick(index), sent=sent)

    @precondition(lambda self: self.driver.running or self.driver.held)
    @rule(index=st.integers(0, 99))
    def abandon(self, index: int) -> None:
        self.driver.abandon(self.pick(index, held=True))

    @rule(program=st.sampled_from(["p", "q", "r", "s", "never seen"]))
    def release(self, program: str) -> None:
        self.driver.release(program)

    @rule(name=BACKENDS, change=st.sampled_from(["fail", "recover", "recover", "drain", "remove"]))
    def change_backend(self, name: BackendId, change: str) -> None:
        if name not in self.driver.cluster.backend_by_id:
            self.driver.add(name, 5_000)
            return
        made: dict[str, events.Event] = {
            "fail": events.BackendFailed(name, "no answer"),
            "recover": events.BackendRecovered(name),
            "drain": events.BackendDraining(name),
            "remove": events.BackendRemoved(name),
        }
        self.driver.send(made[change])

    @rule(
        name=BACKENDS,
        models=st.sampled_from([None, ("m",), ("m", "n"), ()]),
        capacity_tokens=st.sampled_from([None, 500, 3_000, 40_000]),
    )
    def observe(self, name: BackendId, models: tuple[str, ...] | None, capacity_tokens: int | None) -> None:
        if name in self.driver.cluster.backend_by_id:
            self.driver.send(events.BackendObserved(name, models, capacity_tokens, 0.5, 1, 1))

    @rule(
        name=BACKENDS,
        program=st.sampled_from(["p", "q", "r", "s", "never seen"]),
        prefix_tokens=st.sampled_from([None, 0, 900]),
    )
    def observe_prefix(self, name: BackendId, program: str, prefix_tokens: int | None) -> None:
        if name in self.driver.cluster.backend_by_id:
            cached = events.CachedPrefix(ProgramId(program), prefix_tokens, 900)
            self.driver.send(events.PrefixesObserved(name, (cached,)))

    @rule(seconds=st.sampled_from([0.0, 1.0, 6.0, 30.0, WAIT_SECONDS]))
    def advance(self, seconds: float) -> None:
        self.driver.advance(seconds)

    @rule(seconds=st.sampled_from([1.0, 50.0, 3_000.0]))
    def let_ticks_be_late(self, seconds: float) -> None:
        self.driver.now += seconds

    @rule()
    def tick(self) -> None:
        self.driver.send(events.Tick())

    @precondition(lambda self: self.driver.held)
    @rule(index=st.integers(0, 99), after=st.sampled_from([0.0, 1.0, 200.0]))
    def send_again(self, index: int, after: float) -> None:
        """A client gives up on a held turn, and sends it again at once or much later."""
        turn = sorted(self.driver.held)[index % len(self.driver.held)]
        arrived = self.driver.held[turn]
        self.driver.abandon(turn)
        self.driver.arrive_again(arrived, after)

    @invariant()
    def policy_is_lawful(self) -> None:
        STEPS_TAKEN[0] += 1
        if self.is_lawful and hasattr(self, "driver"):
            self.driver.check_policy()

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.driver.close()


def explore(policy: Callable[[], Policy], *, is_lawful: bool) -> None:
    """Search with hypothesis for events that break something."""
    machine = type("Machine", (SchedulerMachine,), {"make_policy": staticmethod(policy), "is_lawful": is_lawful})
    profile = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=not LONG,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=profile)


@pytest.mark.parametrize("name", POLICIES)
def test_any_order_of_events_leaves_the_books_balanced(name: str) -> None:
    """Under each built-in policy, which decides nothing illegal on the way."""
    explore(POLICIES[name], is_lawful=True)


def test_any_order_of_events_under_a_harmful_policy_leaves_the_books_balanced() -> None:
    """Illegal decisions and exceptions at random cost no turn and no token."""
    explore(lambda: Adversary(0), is_lawful=False)


@pytest.mark.skipif(not LONG, reason="the long profile only")
def test_long_profile_takes_two_hundred_thousand_steps(request: pytest.FixtureRequest) -> None:
    """What ``make test-long`` is for; a part of the searches alone proves nothing about their number."""
    searches = [item for item in request.session.items if "any_order_of_events" in item.name]
    if len(searches) < len(POLICIES) + 1:
        pytest.skip("not all searches were asked for")
    assert STEPS_TAKEN[0] >= 200_000


def tight(mode: OnHoldLimit, max_hold_seconds: float) -> SchedulerSettings:
    """Limits that are reached often."""
    return SchedulerSettings(
        max_hold_seconds=max_hold_seconds,
        on_hold_limit=mode,
        program_ttl_seconds=300.0,
        branch_ttl_seconds=50.0,
        max_branches=2,
        max_held_turns=30,
        max_programs=11,
    )


@pytest.mark.parametrize("mode", list(OnHoldLimit))
@pytest.mark.parametrize("name", POLICIES)
def test_long_random_run_leaves_nothing_behind(name: str, mode: OnHoldLimit) -> None:
    """Hundreds of events with many programs, and at the end every total is zero."""
    for seed in range(SEEDS):
        driver = SchedulerDriver(POLICIES[name](), tight(mode, [60.0, 1800.0, 0.0][seed % 3]))
        random_run(driver, seed, steps=150)
        driver.check_policy()


@pytest.mark.parametrize("mode", list(OnHoldLimit))
def test_long_random_run_under_a_harmful_policy_leaves_nothing_behind(mode: OnHoldLimit) -> None:
    """The same with decisions of chance."""
    for seed in range(2 * SEEDS):
        random_run(SchedulerDriver(Adversary(seed), tight(mode, 60.0)), seed, steps=150)
