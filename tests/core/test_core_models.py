"""Programs whose conversations use several models, and backends that load and unload them."""

from __future__ import annotations

import pytest
from core_policies import Scripted

from thunderagent.core.commands import PauseReason, ProgramPaused
from thunderagent.core.events import BackendFailed, BackendObserved, BackendRecovered
from thunderagent.policy import BackendId, ClusterView, Pause, ProgramId, TurnView
from thunderagent.testing.scheduler_driver import SchedulerDriver

A, B, P = BackendId("A"), BackendId("B"), ProgramId("p")


def roomiest_or_place(turn: TurnView, cluster: ClusterView) -> BackendId:
    """The place where it can run there, else the last backend."""
    return turn.eligible_backends[-1].id if turn.place is None else turn.place.id


def two_models(on_a: str = "m", on_b: str = "n") -> SchedulerDriver:
    """A and B serve models named by one letter each."""
    driver = SchedulerDriver(Scripted(roomiest_or_place))
    driver.add("A", 100_000, list(on_a))
    driver.add("B", 100_000, list(on_b))
    return driver


def test_backend_that_drops_a_model_keeps_no_programs_of_it() -> None:
    """They were bound there and charged for ever: now their next turn is placed afresh, as for a lost backend."""
    driver = two_models("m", "m")
    running = driver.arrive("q", 500, model="m")
    driver.finish(driver.arrive("p", 1_000, model="m"), 1_000, 10)
    assert driver.accounted() == {"A": 0, "B": 1_510}
    driver.send(BackendObserved(B, ("n",)))
    assert driver.told(ProgramPaused) == [
        ProgramPaused(ProgramId(name), B, PauseReason.BACKEND_LOST) for name in ("q", "p")
    ]
    assert driver.accounted() == {"A": 0, "B": 500}
    driver.finish(running, 500, 10)
    assert driver.where == {driver.arrive("p", 1_100, model="m"): A}
    driver.close()


def test_program_stays_when_only_its_sub_agents_model_is_dropped() -> None:
    """What the sub-agent left there is gone with the model; its next turn goes beside the place."""
    driver = two_models("mn", "n")
    driver.send(BackendFailed(B, "gone"))
    driver.finish(driver.arrive("p", 1_000, model="m"), 1_000, 10)
    driver.finish(driver.arrive("p", 300, branch="sub", model="n"), 300, 10)
    driver.send(BackendRecovered(B))
    assert driver.accounted() == {"A": 1_320, "B": 0}
    driver.send(BackendObserved(A, ("m",)))
    assert driver.told(ProgramPaused) == []
    assert driver.accounted() == {"A": 1_010, "B": 0}
    main, sub = driver.arrive("p", 1_100, model="m"), driver.arrive("p", 400, branch="sub", model="n")
    assert driver.where == {main: A, sub: B}
    driver.close()


def test_sub_agent_of_another_model_is_not_kept_for_the_next_place_of_a_paused_program() -> None:
    """50,000 tokens of model n do not lie where the program of model m goes on."""
    driver = two_models()
    main, sub = driver.arrive("p", 100, model="m"), driver.arrive("p", 50_000, branch="sub", model="n")
    driver.finish(main, 100, 10)
    driver.policy.decisions = [Pause(P)]  # type: ignore[attr-defined]
    driver.abandon(driver.arrive(None))
    driver.finish(sub, 50_000, 10)
    driver.arrive("p", 200, model="m")
    assert driver.accounted() == {"A": 200, "B": 0}
    driver.close()


def test_what_a_sub_agent_left_is_not_charged_at_a_place_that_does_not_serve_its_model() -> None:
    """It was kept on A, which serves both models, and the program goes to B, which serves its own."""
    driver = two_models("mn", "m")
    driver.send(BackendFailed(B, "gone"))
    driver.finish(driver.arrive("p", 1_000, model="m"), 1_000, 10)
    driver.finish(driver.arrive("p", 300, branch="sub", model="n"), 300, 10)
    driver.send(BackendRecovered(B))
    driver.send(BackendFailed(A, "gone"))
    driver.arrive("p", 1_010, model="m")
    assert driver.accounted() == {"A": 0, "B": 1_010}
    driver.close()


def test_model_of_a_program_is_the_one_that_it_has_its_place_for() -> None:
    """A policy sees which backends may take it while none of its turns waits."""
    driver = two_models()
    driver.finish(driver.arrive("p", model="m"))
    driver.finish(driver.arrive("p", branch="sub", model="n"))
    assert driver.program("p").model == "m"
    driver.send(BackendFailed(A, "gone"))
    driver.arrive("p", branch="sub", model="n")
    assert driver.program("p").model == "n"
    driver.arrive("unnamed")
    assert driver.program("unnamed").model is None
    driver.close()


def test_origin_of_a_turn_beside_its_programs_place_is_its_own_conversations() -> None:
    """Sub-agents of a second model find their prefix again; the program's own turns have the program's origin."""
    seen: dict[str, object] = {}

    def answer(turn: TurnView, cluster: ClusterView) -> BackendId:
        seen[turn.model or ""] = turn.origin
        return roomiest_or_place(turn, cluster)

    driver = two_models()
    driver.add("C", 100_000, ["n"])
    driver.policy.answer = answer  # type: ignore[attr-defined]
    driver.finish(driver.arrive("p", model="m"))
    assert seen == {"m": None}
    driver.finish(driver.arrive("p", branch="sub", model="n"), 100, 10)
    assert seen == {"m": None, "n": None}
    driver.add("D", 100_000, ["n"])
    driver.finish(driver.arrive("p", branch="sub", model="n"), 100, 10)
    driver.finish(driver.arrive("p", model="m"))
    assert seen == {"m": "A", "n": "C"}
    driver.finish(driver.arrive("p", branch="other", model="n"))
    assert seen["n"] is None


@pytest.mark.parametrize("is_back", [True, False])
def test_origin_whose_cache_was_lost_is_none(is_back: bool) -> None:
    """Whether its backend is there again or not."""
    driver = two_models("m", "nm")
    driver.finish(driver.arrive("p", model="m"))
    driver.send(BackendFailed(B, "gone"))
    if is_back:
        driver.send(BackendRecovered(B))
    seen: list[object] = []
    driver.policy.answer = lambda turn, cluster: seen.append(turn.origin) or A  # type: ignore[attr-defined]
    driver.arrive("p", model="m")
    assert seen == [None]
