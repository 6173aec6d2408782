"""The built-in policies and the example of a third party's keep the contract, which notices who does not."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policies.affinity import Affinity
from policies.least_kv import LeastKv
from policies.pause_resume import PauseResume
from policies.round_robin import RoundRobin
from policies.working_set import WorkingSet
from thunderagent.core.commands import TurnHeld
from thunderagent.policy import Pause, Policy, ProgramId
from thunderagent.testing import PolicyContract

EXAMPLE = Path(__file__).parent / "third_party_example" / "shortest_queue.py"


def load_example() -> Policy:
    """The example's policy, without installing its package."""
    spec = importlib.util.spec_from_file_location("shortest_queue", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ShortestQueue()


class TestRoundRobin(PolicyContract):
    make_policy = RoundRobin


class TestAffinity(PolicyContract):
    make_policy = Affinity


class TestLeastKv(PolicyContract):
    make_policy = LeastKv


class TestLeastKvOverflow(PolicyContract):
    make_policy = staticmethod(lambda: LeastKv.from_options({"overflow": "true"}))


class TestLeastKvReserve(PolicyContract):
    make_policy = staticmethod(lambda: LeastKv.from_options({"growth_reserve": "0.3", "idle_lease_seconds": "2"}))


class TestLeastKvWithoutReserveAndLease(PolicyContract):
    make_policy = staticmethod(lambda: LeastKv.from_options({"growth_reserve": "0", "idle_lease_seconds": "0"}))


class TestPauseResume(PolicyContract):
    make_policy = PauseResume


class TestPauseResumePaper(PolicyContract):
    make_policy = staticmethod(lambda: PauseResume.from_options({"preset": "paper"}))


def pause_resume(**options: str) -> Callable[[], Policy]:
    """Builds ``pause-resume`` with these options."""
    return staticmethod(lambda: PauseResume.from_options(options))


class TestPauseResumePaperDecay(PolicyContract):
    make_policy = pause_resume(preset="paper", resume_decay="true")


class TestPauseResumeDecay(PolicyContract):
    make_policy = pause_resume(resume_decay="true", pause_decay="true")


class TestPauseResumeResumeDecay(PolicyContract):
    make_policy = pause_resume(resume_decay="true", half_life_seconds="3")


class TestPauseResumePauseDecay(PolicyContract):
    make_policy = pause_resume(pause_decay="true", half_life_seconds="3", acting_weight="0.5")


class TestPauseResumeOrigin(PolicyContract):
    make_policy = pause_resume(resume_on="origin", move_after_seconds="20")


class TestPauseResumeOriginQuantum(PolicyContract):
    make_policy = pause_resume(resume_on="origin", quantum_seconds="5")


class TestPauseResumeResident(PolicyContract):
    make_policy = pause_resume(resume_on="resident")


class TestPauseResumeTightest(PolicyContract):
    make_policy = pause_resume(resume_on="tightest", pause_order="largest")


class TestPauseResumeSmallest(PolicyContract):
    make_policy = pause_resume(resume_order="smallest", ageing_seconds="30")


class TestPauseResumeRotating(PolicyContract):
    make_policy = pause_resume(resume_order="first-come", pause_order="last-come", quantum_turns="2")


class TestPauseResumeOneTurn(PolicyContract):
    make_policy = pause_resume(turns_per_program="1")

    def test_ample_room_holds_nobody(self) -> None:
        """But turns beside another one of their program: here each program has one."""
        self._hold_nobody(10_000_000)

    def test_unknown_capacity_is_no_reason_to_hold(self) -> None:
        """Likewise."""
        self._hold_nobody(None)

    def _hold_nobody(self, capacity_tokens: int | None) -> None:
        driver = self._driver(capacity_tokens)
        for index in range(30):
            driver.arrive(f"p{index}", 50_000)
            driver.arrive(None, 500)
        assert (driver.told(TurnHeld), len(driver.running)) == ([], 60)
        driver.check_policy()


class TestPauseResumeGauge(PolicyContract):
    make_policy = pause_resume(shared_correction="usage", low_watermark="0.7", high_watermark="0.9")


class TestPauseResumeUnshared(PolicyContract):
    make_policy = pause_resume(shared_correction="none", react="false")


class TestWorkingSet(PolicyContract):
    make_policy = staticmethod(lambda: WorkingSet.from_options({}))


class TestWorkingSetBatch(PolicyContract):
    make_policy = staticmethod(lambda: WorkingSet.from_options({"dial": "batch", "guest_ratio": "1"}))


class TestWorkingSetBetween(PolicyContract):
    make_policy = staticmethod(lambda: WorkingSet.from_options({"dial": "0.3", "turns_per_program": "8"}))


class TestThirdPartyExample(PolicyContract):
    make_policy = staticmethod(load_example)


def test_example_is_short() -> None:
    """A policy takes under 40 lines."""
    assert len(EXAMPLE.read_text().splitlines()) < 40


# The contract notices


def contract_of(policy: type[Policy]) -> PolicyContract:
    """The contract for a policy that breaks it."""
    return type("Contract", (PolicyContract,), {"make_policy": policy})()


class Base(Policy):
    """The first backend."""

    name = "base"

    def admit(self, turn: Any, cluster: Any) -> Any:
        return turn.eligible_backends[0].id


def test_contract_passes_a_plain_policy() -> None:
    """The base of those below is at no fault itself."""
    contract_of(Base).test_random_runs_have_no_failure_and_no_rejected_decision()
    contract_of(Base).test_ample_room_holds_nobody()


def test_contract_notices_a_backend_that_is_not_eligible() -> None:
    """An answer out of the blue."""

    class Stray(Base):
        def admit(self, turn: Any, cluster: Any) -> Any:
            return "A"

    with pytest.raises(AssertionError, match="admit answered 'A'"):
        contract_of(Stray).test_random_runs_have_no_failure_and_no_rejected_decision()


def test_contract_notices_an_exception() -> None:
    """No guard hides it."""

    class Raising(Base):
        def admit(self, turn: Any, cluster: Any) -> Any:
            return turn.program.place.id

    with pytest.raises(AssertionError, match="AttributeError"):
        contract_of(Raising).test_ample_room_holds_nobody()


TESTS = [name for name in dir(PolicyContract) if name.startswith("test_") and "option" not in name]


@pytest.mark.parametrize("test", [name for name in TESTS if name != "test_policy_has_a_name_and_a_sensible_tick"])
def test_every_test_of_the_contract_notices_a_policy_that_fails_or_decides_wrong_once(test: str) -> None:
    """Its third ``rebalance`` raises, or pauses nobody in particular; everything else is right."""

    class Late(Base):
        wrong: Any = None

        def __init__(self) -> None:
            self.calls = 0

        def rebalance(self, cluster: Any, trigger: Any) -> Any:
            self.calls += 1
            if self.calls != 3:
                return super().rebalance(cluster, trigger)
            if self.wrong is None:
                raise KeyError("late")
            return [self.wrong]

    class Wrong(Late):
        wrong = Pause(ProgramId("nobody"))

    for policy, message in ((Late, "PolicyFailed"), (Wrong, "DecisionRejected")):
        with pytest.raises(AssertionError, match=f"the policy misbehaved: .*{message}"):
            getattr(contract_of(policy), test)()


def test_contract_notices_a_policy_that_fails_after_500_calls() -> None:
    """A list that only grows, a number that overflows: some faults take long."""

    class VeryLate(Base):
        def __init__(self) -> None:
            self.calls = 0

        def rebalance(self, cluster: Any, trigger: Any) -> Any:
            self.calls += 1
            if self.calls > 500:
                raise KeyError("late")
            return super().rebalance(cluster, trigger)

    with pytest.raises(AssertionError, match="the policy misbehaved"):
        contract_of(VeryLate).test_long_run_has_no_failure_and_no_rejected_decision()


def test_contract_notices_an_illegal_decision() -> None:
    """Pausing without a look."""

    class Pausing(Base):
        def rebalance(self, cluster: Any, trigger: Any) -> Any:
            return [Pause(ProgramId("p1"))]

    with pytest.raises(AssertionError, match="DecisionRejected"):
        contract_of(Pausing).test_random_runs_have_no_failure_and_no_rejected_decision()


def test_contract_notices_a_needless_hold() -> None:
    """Room for all, and yet somebody waits."""

    class Holding(Base):
        def admit(self, turn: Any, cluster: Any) -> Any:
            return None if turn.program is None else super().admit(turn, cluster)

    with pytest.raises(AssertionError):
        contract_of(Holding).test_ample_room_holds_nobody()


def test_contract_notices_a_policy_that_never_lets_go() -> None:
    """Whoever was held once waits for ever."""

    class Forgetting(LeastKv):
        def rebalance(self, cluster: Any, trigger: Any) -> Any:
            return ()

    with pytest.raises(AssertionError, match="held though the backend is empty"):
        contract_of(Forgetting).test_freed_room_is_used()


def test_contract_notices_a_change_of_the_cluster() -> None:
    """Views are to be read."""

    class Meddling(Base):
        def admit(self, turn: Any, cluster: Any) -> Any:
            backend = turn.eligible_backends[0]
            backend.capacity_tokens -= 1
            return backend.id

    with pytest.raises(AssertionError, match="admit changed the cluster"):
        contract_of(Meddling).test_ample_room_holds_nobody()


def test_contract_notices_chance() -> None:
    """A policy of its own mind is not reproducible."""
    calls = iter(range(1_000_000))

    class Fickle(Base):
        def admit(self, turn: Any, cluster: Any) -> Any:
            backends = turn.eligible_backends
            return backends[(next(calls) // 7) % len(backends)].id

    with pytest.raises(AssertionError):
        contract_of(Fickle).test_same_events_bring_the_same_commands()
