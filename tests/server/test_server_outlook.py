"""What the daemon says of waits to come: ``/health``, ``/metrics``, and the log where the hold limit is too low."""

from __future__ import annotations

from typing import Any

import pytest
from router_harness import Router, Stack, until, words
from structlog.testing import capture_logs

from policies.pause_resume import PauseResume
from thunderagent.clock import VirtualClock
from thunderagent.core.events import BackendFailed, BackendRecovered
from thunderagent.core.ids import BackendId, TurnId
from thunderagent.core.policy import ROTATION_RATIO
from thunderagent.core.settings import OnHoldLimit, SchedulerSettings
from thunderagent.core.usage import Prefills
from thunderagent.gateway import Gateway
from thunderagent.server import hold_watch
from thunderagent.server.hold_watch import HoldLimitWatch
from thunderagent.server.state import STATE
from thunderagent.telemetry.metrics import Metrics
from thunderagent.testing.fake_backend import json_answer
from thunderagent.testing.scheduler_driver import SchedulerDriver


async def pressed_router(stack: Stack, limit_seconds: float) -> tuple[Router, Any]:
    """One whose only place is taken by the idle program ``a`` while ``b`` waits."""
    engine, no_lease = await stack.engine(), {"idle_lease_seconds": "0"}
    scheduler = {"max_hold_seconds": limit_seconds}
    router = await stack.router(
        engine, capacity_tokens=1200, policy="pause-resume", policy_options=no_lease, scheduler=scheduler
    )
    await router.chat(words(1000), "a")
    turn = router.start_chat(words(1000, "beta"), "b")
    await until(lambda: router.held == 1)
    return router, turn


def counted(router: Router) -> Prefills:
    """What its only backend had counted at the last look."""
    (entry,) = router.app[STATE].pool.watched.values()
    assert entry.prefills is not None
    return entry.prefills


def page_of(requests: int, computed_tokens: int, seconds: float) -> bytes:
    """A metrics page of vLLM that tells nothing else."""
    return json_answer(
        f"vllm:request_prefill_time_seconds_count {requests}\n"
        f"vllm:request_prefill_time_seconds_sum {seconds}\n"
        f"vllm:request_prefill_kv_computed_tokens_sum {computed_tokens}\n".encode()
    )


async def test_health_and_metrics_show_the_outlook(stack: Stack) -> None:
    """Two programs on room for one and a fifth; the gauges say the same as /health. Whether the limit can
    be kept is not known, since nothing has told yet how fast the engine is."""
    router, turn = await pressed_router(stack, 60.0)
    shown = (await router.get("/health"))[1]["outlook"]
    pressure = shown["pressure"]
    assert 1.6 < pressure < 1.8
    assert shown == {
        "pressure": pressure,
        "refill_seconds": 30.0,
        "hold_seconds": pytest.approx((pressure - 1) * 300, abs=0.2),
        "rotation_ratio": pytest.approx((pressure - 1) * 30 / 60, abs=0.001),
        "max_hold_seconds": 60.0,
        "keeps_limit": None,
        "is_refill_known": False,
    }
    assert shown["is_refill_known"] is False, "a number for a boolean"
    assert await router.metric("thunderagent_pressure") == pressure
    assert await router.metric("thunderagent_expected_hold_seconds") == shown["hold_seconds"]
    assert await router.metric("thunderagent_hold_limit_rotation_ratio") == shown["rotation_ratio"]
    await router.release("a")
    await turn
    shown = (await router.get("/health"))[1]["outlook"]
    assert (shown["hold_seconds"], shown["rotation_ratio"], shown["keeps_limit"]) == (0.0, 0.0, True)


async def test_outlook_is_null_where_a_capacity_is_unknown(stack: Stack) -> None:
    """No number stands for what is not known, and the gauges have no sample then."""
    router = await stack.router(await stack.fake())
    shown = (await router.get("/health"))[1]["outlook"]
    assert [shown[name] for name in ("pressure", "hold_seconds", "rotation_ratio")] == [None, None, None]
    assert shown["keeps_limit"] is None
    async with router.session.get(router.url + "/metrics") as answer:
        page = await answer.text()
    assert "# TYPE thunderagent_pressure gauge" in page
    assert "\nthunderagent_pressure " not in page


async def test_refill_is_learned_from_an_engine_whose_clients_do_not_stream(stack: Stack) -> None:
    """Its counters tell what it computed and how long that took; a turn with little to compute teaches nothing."""
    engine = await stack.engine()
    router = await stack.router(engine)
    await router.chat(words(100), "small")
    await until(lambda: counted(router).requests == 1)
    small = counted(router)
    assert (await router.get("/health"))[1]["outlook"]["is_refill_known"] is False
    await router.chat(words(3000), "large")
    await until(lambda: counted(router).requests == 2)
    shown = (await router.get("/health"))[1]["outlook"]
    large = counted(router).since(small)
    assert large is not None
    assert 2_900 < large.computed_tokens < 3_100
    assert shown["is_refill_known"] is True
    assert shown["refill_seconds"] == pytest.approx(8192 * large.seconds / large.computed_tokens, abs=0.001)


async def test_counts_of_a_backend_that_failed_a_look_are_begun_anew(stack: Stack) -> None:
    """Whether they are those of the same process is not known."""
    fake = await stack.fake(pages={"/metrics": page_of(1, 2_000, 1.0)})
    router = await stack.router(fake, capacity_tokens=10_000)
    (backend,) = router.gateway.scheduler.cluster.backends
    (entry,) = router.app[STATE].pool.watched.values()
    fake.is_healthy = False
    await until(lambda: entry.prefills is None)
    fake.pages = {"/metrics": page_of(2, 6_000, 2.0)}
    fake.is_healthy = True
    await until(lambda: entry.prefills == Prefills(2, 6_000, 2.0))
    assert backend.refill_seconds is None
    fake.pages = {"/metrics": page_of(3, 8_000, 3.0)}
    await until(lambda: entry.prefills == Prefills(3, 8_000, 3.0))
    assert backend.refill_seconds == 5.0


async def test_daemon_says_when_its_limit_cannot_be_kept(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, however often it looks; and once when that is over."""
    monkeypatch.setattr(hold_watch, "_LOOK_SECONDS", 0.005)
    monkeypatch.setattr(hold_watch, "_LASTING_SECONDS", 0.02)

    def told() -> list[str]:
        return [entry["event"] for entry in logged if entry["event"].startswith("hold_limit.")]

    with capture_logs() as logged:
        router, turn = await pressed_router(stack, 60.0)
        await until(told)
        await router.release("a")
        await turn
        await until(lambda: len(told()) > 1)
    assert told() == ["hold_limit.unattainable", "hold_limit.attainable"]


# The watch by itself, on a clock that the test moves


class Watched:
    """Eight programs of 500 tokens on one backend or more of 1,000; a limit of 100 s takes 0.9 of the engines."""

    def __init__(self, limit_seconds: float = 100.0, on_limit: OnHoldLimit | None = None, programs: int = 8) -> None:
        settings = SchedulerSettings(max_hold_seconds=limit_seconds, on_hold_limit=on_limit)
        self.driver = SchedulerDriver(PauseResume.from_options({"idle_lease_seconds": "0"}), settings)
        self.driver.add("A", 1_000)
        self.turns: list[TurnId] = []
        self.clock = VirtualClock()
        scheduler = self.driver.scheduler
        gateway = Gateway(scheduler, self.clock, Metrics(scheduler.cluster, settings))
        self.watch = HoldLimitWatch(gateway, self.clock.now)
        self.come(programs)

    def come(self, programs: int) -> None:
        """So many programs more, a turn each."""
        for _ in range(programs):
            self.turns.append(self.driver.arrive(f"p{len(self.turns)}", 500))

    def leave(self, programs: int) -> None:
        """So many of those that wait leave, the last to come first."""
        for _ in range(programs):
            self.driver.abandon(self.turns.pop())

    def look(self, seconds: float) -> list[dict[str, Any]]:
        """What is logged while it looks every 5 s for so long."""
        with capture_logs() as logged:
            for _ in range(int(seconds / 5)):
                self.clock.advance(5.0)
                self.watch.look()
        return [dict(entry) for entry in logged]


def test_warning_says_what_is_given_instead_and_what_helps() -> None:
    """p = 4; 1.33 is what a limit of 100 s bears, which three replicas, a third of the agents, or 900 s are."""
    watched = Watched()
    (told,) = watched.look(60.0)
    assert told == {
        "event": "hold_limit.unattainable",
        "log_level": "warning",
        "pressure": 4.0,
        "max_hold_seconds": 100.0,
        "expected_hold_seconds": 900,
        "rotation_ratio": 0.9,
        "on_hold_limit": "head",
        "instead": "turns at the limit get the next room, in the order in which they reached it; prefilling again "
        "who made room takes about 90 % of the engines",
        "remedy": "2 more replicas, 67 % fewer agents at once, or --max-hold-seconds 900; these take 30 s for the "
        "time to fill a cache with prompts, since neither a streamed answer nor their counters have told yet how "
        "fast the engines are",
        "refill_seconds": 30.0,
        "is_refill_known": False,
    }


def dear(watched: Watched) -> bool:
    """Whether the limit takes more of the engines than rotation may cost."""
    ratio = watched.watch.gateway.outlook().rotation_ratio
    assert ratio is not None
    return ratio > ROTATION_RATIO


@pytest.mark.parametrize("helps", ["replicas", "agents", "limit"])
def test_each_remedy_has_the_limit_kept(helps: str) -> None:
    """As many replicas, as few agents, as high a limit as it says: at once nothing is to be told any more."""
    watched = Watched()
    if helps == "replicas":
        watched.driver.add("B", 1_000)
        assert dear(watched)
        watched.driver.add("C", 1_000)
    elif helps == "agents":
        watched.leave(5)
        assert dear(watched)
        watched.leave(1)
    else:
        assert dear(Watched(899.0))
        watched = Watched(900.0)
    assert not dear(watched)


@pytest.mark.parametrize(
    ("on_limit", "limit_seconds", "words_of_it"),
    [
        (OnHoldLimit.HEAD, 50.0, "the engines cannot prefill as fast as that, so waits go past the limit"),
        (OnHoldLimit.FORCE, 100.0, "forwarded over capacity"),
        (OnHoldLimit.REFUSE, 100.0, "answered 503 hold_limit"),
    ],
)
def test_warning_is_true_for_the_mode_in_force(on_limit: OnHoldLimit, limit_seconds: float, words_of_it: str) -> None:
    """What turns get at the limit is the mode's."""
    (told,) = Watched(limit_seconds, on_limit).look(60.0)
    assert told["on_hold_limit"] == on_limit.value
    assert words_of_it in told["instead"]


def test_mode_of_the_policy_is_told_where_none_was_given() -> None:
    """pause-resume's preset=paper forces."""
    settings = SchedulerSettings(max_hold_seconds=100.0)
    driver = SchedulerDriver(PauseResume.from_options({"preset": "paper"}), settings)
    assert driver.scheduler.on_hold_limit is OnHoldLimit.FORCE


def test_short_peak_is_not_told() -> None:
    """25 s of it, then calm, then 25 s again."""
    watched = Watched()
    assert watched.look(30.0) == []
    watched.leave(6)
    assert watched.look(5.0) == []
    watched.come(6)
    assert watched.look(30.0) == []
    assert len(watched.look(5.0)) == 1


def test_end_is_told_once_it_has_lasted() -> None:
    """An info line with the numbers of then, no sooner than 30 s after."""
    watched = Watched()
    watched.look(60.0)
    watched.leave(6)
    assert watched.look(30.0) == []
    assert watched.look(60.0) == [
        {
            "event": "hold_limit.attainable",
            "log_level": "info",
            "pressure": 1.0,
            "max_hold_seconds": 100.0,
            "expected_hold_seconds": 0,
            "rotation_ratio": 0.0,
            "refill_seconds": 30.0,
            "is_refill_known": False,
        }
    ]


def test_load_about_the_bound_is_told_once() -> None:
    """A limit of 1,600 s bears p = 6.33: 13 programs are too many, 12 take 0.094 and end nothing, 9 do."""
    watched = Watched(1_600.0, programs=13)
    assert [entry["event"] for entry in watched.look(60.0)] == ["hold_limit.unattainable"]
    for _ in range(3):
        watched.leave(1)
        assert watched.look(60.0) == []
        watched.come(1)
        assert watched.look(60.0) == []
    watched.leave(3)
    assert [entry["event"] for entry in watched.look(60.0)] == ["hold_limit.attainable"]


def test_nothing_is_told_while_nothing_is_known() -> None:
    """The only backend is lost and comes back: neither the end of it nor anything new."""
    watched = Watched()
    assert len(watched.look(60.0)) == 1
    watched.driver.send(BackendFailed(BackendId("A"), "gone"))
    assert watched.look(120.0) == []
    watched.driver.send(BackendRecovered(BackendId("A")))
    assert watched.look(120.0) == []
