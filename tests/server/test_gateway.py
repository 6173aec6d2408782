"""The driver of the scheduler by itself: tickets, the timer, the effects of commands."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import pytest
from structlog.testing import capture_logs

from policies.affinity import Affinity
from policies.pause_resume import PauseResume
from thunderagent.clock import Clock, MonotonicClock, ScaledClock, VirtualClock
from thunderagent.core import events
from thunderagent.core.ids import BackendId, BranchId, ProgramId
from thunderagent.core.invariants import check
from thunderagent.core.policy import Policy
from thunderagent.core.scheduler import IllegalEvent, Scheduler
from thunderagent.core.settings import OnHoldLimit, SchedulerSettings
from thunderagent.core.usage import Outcome, Usage
from thunderagent.errors import HoldLimitReached, ProgramWasReleased, ShuttingDown
from thunderagent.gateway import Gateway
from thunderagent.identity import Submission
from thunderagent.telemetry.metrics import Metrics

ONE, TWO = BackendId("http://one"), BackendId("http://two")


def submission(program: str | None = "p", size_bytes: int = 100) -> Submission:
    """A turn of a program with a body of so many bytes."""
    name = None if program is None else ProgramId(program)
    return Submission(name, BranchId("main"), "m", False, False, (), b"x" * size_bytes, False)


def gateway_of(
    policy: Policy | None = None, clock: Clock | None = None, settings: SchedulerSettings | None = None
) -> Gateway:
    """A gateway with one backend of 1,000 tokens."""
    scheduler = Scheduler(policy or Affinity(), settings or SchedulerSettings())
    gateway = Gateway(scheduler, clock or MonotonicClock(), Metrics(scheduler.cluster, scheduler.settings))
    gateway.handle(events.BackendAdded(ONE, ("m",), 1000))
    return gateway


def full_gateway(**options: object) -> Gateway:
    """One whose backend is taken by the idle program ``full``, however long it is idle."""
    gateway = gateway_of(PauseResume.from_options({"idle_lease_seconds": "0"}), **options)  # type: ignore[arg-type]
    gateway.arrive(submission("full", 4000)).close(Outcome.COMPLETED, Usage(900, 50, None))
    return gateway


async def test_tick_is_not_starved_by_events_in_every_round_of_the_loop() -> None:
    """Streams that tell their progress in each round do not put the hold limit off."""
    settings = SchedulerSettings(max_hold_seconds=1e-6, on_hold_limit=OnHoldLimit.REFUSE)
    gateway = full_gateway(settings=settings)
    running, waiting = gateway.arrive(submission("full", 3600)), gateway.arrive(submission("a", 3000))
    for output_tokens in range(1, 10):
        running.progress(output_tokens)
        await asyncio.sleep(0)
    assert waiting.id not in gateway.scheduler.cluster.turn_by_id
    with pytest.raises(HoldLimitReached):
        await waiting.place()
    running.close(Outcome.COMPLETED)
    waiting.close(Outcome.CLIENT_GONE)
    gateway.stop()


async def test_timer_is_set_anew_for_an_earlier_deadline_only() -> None:
    """And when it comes while nothing is due, for the next one, without a tick."""
    clock = VirtualClock()
    gateway = full_gateway(clock=clock, settings=SchedulerSettings(max_hold_seconds=50.0))
    first, before = gateway.arrive(submission("a", 3000)), gateway._timer
    second = gateway.arrive(submission("b", 3000))
    assert gateway._timer is before
    first.close(Outcome.CLIENT_GONE)
    second.close(Outcome.CLIENT_GONE)
    assert gateway._timer is before
    lines = len(gateway.scheduler.journal.lines())
    gateway._tick()
    assert gateway._timer not in (None, before)
    assert len(gateway.scheduler.journal.lines()) == lines
    gateway.stop()


async def test_ticket_is_placed_and_closed_once() -> None:
    """Closing is for every path's finally: the second call changes nothing."""
    gateway = gateway_of()
    ticket = gateway.arrive(submission())
    assert await ticket.place() == ONE
    ticket.progress(10)
    ticket.close(Outcome.COMPLETED, Usage(30, 12, 0))
    ticket.close(Outcome.CLIENT_GONE)
    ticket.progress(20)
    program = gateway.scheduler.cluster.program_by_id[ProgramId("p")]
    assert (program.total_tokens, program.turns_finished, gateway.tickets) == (42, 1, {})
    check(gateway.scheduler.cluster)
    gateway.stop()


async def test_failed_forward_is_placed_again() -> None:
    """After a backend gave no answer the same ticket waits for another one."""
    gateway = gateway_of()
    gateway.handle(events.BackendAdded(TWO, ("m",), 1000))
    ticket = gateway.arrive(submission())
    assert await ticket.place() == ONE
    ticket.forward_failed("connect", sent=False)
    assert await ticket.place() == TWO
    ticket.close(Outcome.COMPLETED)
    check(gateway.scheduler.cluster)
    gateway.stop()


async def test_cancelled_wait_is_abandoned() -> None:
    """A client that leaves in the queue costs nothing; the place goes to the next."""
    gateway = full_gateway()
    first, second = (gateway.arrive(submission(name, 3000)) for name in ("a", "b"))
    waiting = asyncio.create_task(first.place())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    first.close(Outcome.CLIENT_GONE)
    assert gateway.release(ProgramId("full"))
    assert await second.place() == ONE
    second.close(Outcome.COMPLETED)
    check(gateway.scheduler.cluster)
    gateway.stop()


async def test_release_while_held_refuses_the_ticket() -> None:
    """Whoever waits for a released program is told so."""
    gateway = full_gateway()
    ticket = gateway.arrive(submission("a", 3000))
    assert gateway.release(ProgramId("a"))
    with pytest.raises(ProgramWasReleased):
        await ticket.place()
    ticket.close(Outcome.CLIENT_GONE)
    check(gateway.scheduler.cluster)
    gateway.stop()


async def test_timer_fires_at_the_schedulers_deadline() -> None:
    """The hold limit comes by itself, on a clock that runs a thousand times as fast."""
    settings = SchedulerSettings(max_hold_seconds=60.0, on_hold_limit=OnHoldLimit.REFUSE)
    gateway = full_gateway(clock=ScaledClock(1000.0), settings=settings)
    ticket = gateway.arrive(submission("a", 3000))
    with pytest.raises(HoldLimitReached):
        await asyncio.wait_for(ticket.place(), 5)
    assert ticket.held_seconds == pytest.approx(60, abs=30)
    ticket.close(Outcome.CLIENT_GONE)
    gateway.stop()


async def test_drain_refuses_held_and_new_turns() -> None:
    """Running turns are left alone."""
    gateway = full_gateway()
    running = gateway.arrive(submission("full", 4100))
    held = gateway.arrive(submission("a", 3000))
    assert await running.place() == ONE
    gateway.drain()
    with pytest.raises(ShuttingDown):
        await held.place()
    with pytest.raises(ShuttingDown):
        gateway.arrive(submission("b"))
    held.close(Outcome.CLIENT_GONE)
    assert list(gateway.tickets) == [running.id]
    running.close(Outcome.COMPLETED)
    check(gateway.scheduler.cluster)
    gateway.stop()


class FastClock(VirtualClock):
    """A virtual one of which ten seconds last one on the wall."""

    def wall_seconds(self, seconds: float) -> float:
        return seconds / 10


@pytest.mark.parametrize(
    ("clock", "max_hold_seconds", "shown"),
    [(VirtualClock(1000.0), 60.0, 60.0), (VirtualClock(1000.0), 0.0, None), (FastClock(1000.0), 60.0, 6.0)],
)
async def test_log_of_a_held_turn_says_how_long_it_may_wait(
    clock: Clock, max_hold_seconds: float, shown: float | None
) -> None:
    """Seconds from now on the wall, not a reading of a clock that nobody else sees; None without a limit."""
    gateway = full_gateway(clock=clock, settings=SchedulerSettings(max_hold_seconds=max_hold_seconds))
    with capture_logs() as logged:
        held = gateway.arrive(submission("a", 3000))
    (line,) = [entry for entry in logged if entry["event"] == "turn.held"]
    assert line == {
        "event": "turn.held",
        "log_level": "debug",
        "turn": held.id,
        "program": "a",
        "reason": "policy",
        "deadline_in_seconds": shown,
    }
    held.close(Outcome.CLIENT_GONE)
    gateway.stop()


async def test_forward_that_fails_during_the_drain_is_refused() -> None:
    """Nobody would place the turn again before the drain's end."""
    gateway = gateway_of()
    ticket = gateway.arrive(submission())
    assert await ticket.place() == ONE
    gateway.drain()
    gateway.handle(events.BackendFailed(ONE, "down"))
    ticket.forward_failed("connect", sent=False)
    with pytest.raises(ShuttingDown):
        await asyncio.wait_for(ticket.place(), 1)
    ticket.close(Outcome.CLIENT_GONE)
    assert gateway.scheduler.cluster.turn_by_id == {}
    check(gateway.scheduler.cluster)
    gateway.stop()


async def test_forward_that_fails_during_the_drain_may_go_on_elsewhere() -> None:
    """The client was promised an answer, and another backend gives it at once."""
    gateway = gateway_of()
    gateway.handle(events.BackendAdded(TWO, ("m",), 1000))
    ticket = gateway.arrive(submission())
    assert await ticket.place() == ONE
    gateway.drain()
    ticket.forward_failed("connect", sent=False)
    assert await ticket.place() == TWO
    ticket.close(Outcome.COMPLETED)
    gateway.stop()


@pytest.mark.parametrize(
    ("spared", "others", "can"),
    [
        (("m",), (), False),
        (("m",), (("m", "n"),), True),
        (("m", "n"), (("m",),), False),
        (("m", "n"), (("m",), ("n",)), True),
        (("m", "n"), (None,), True),
        (None, (("m",),), True),
        (None, (), False),
    ],
)
async def test_backend_can_be_spared_only_where_all_its_models_are_served(
    spared: tuple[str, ...] | None, others: tuple[tuple[str, ...] | None, ...], can: bool
) -> None:
    """The last backend of a model is never given up on account of its answers."""
    gateway = gateway_of()
    gateway.handle(events.BackendRemoved(ONE))
    gateway.handle(events.BackendAdded(ONE, spared, 1000))
    for index, models in enumerate(others):
        gateway.handle(events.BackendAdded(BackendId(f"http://other{index}"), models, 1000))
    assert gateway.can_spare(ONE) is can
    for index in range(len(others)):
        gateway.handle(events.BackendFailed(BackendId(f"http://other{index}"), "down"))
    assert not gateway.can_spare(ONE)
    gateway.stop()


@pytest.mark.parametrize("program", ["p", None])
async def test_scheduler_that_breaks_half_way_keeps_no_turn(
    monkeypatch: pytest.MonkeyPatch, program: str | None
) -> None:
    """Neither a turn that it holds nor one that it has forwarded stays behind without a ticket."""
    gateway = full_gateway()
    scheduler = gateway.scheduler

    def breaking(*_: object) -> NoReturn:
        raise RuntimeError("a bug")

    for size_bytes in (3000, 10):
        with monkeypatch.context() as patched, capture_logs():
            patched.setattr(type(scheduler.journal), "record", breaking)
            with pytest.raises(RuntimeError, match="a bug"):
                gateway.arrive(submission(program, size_bytes))
        assert (gateway.tickets, scheduler.cluster.turn_by_id, scheduler.cluster.queue.turn_count) == ({}, {}, 0)
    check(scheduler.cluster)
    gateway.stop()


async def test_arrival_that_fails_leaves_no_ticket() -> None:
    """A bug in the scheduler costs one request, and does not keep the daemon from ending."""

    class Backwards(MonotonicClock):
        reading = 1e12

        def now(self) -> float:
            return self.reading

    clock = Backwards()
    gateway = gateway_of(clock=clock)
    clock.reading = 0.0
    with capture_logs() as logged, pytest.raises(IllegalEvent, match="the clock went"):
        gateway.arrive(submission())
    assert [entry["event"] for entry in logged] == ["scheduler.failed"]
    assert gateway.tickets == {}
    gateway.stop()


async def test_stopped_gateway_has_no_timer() -> None:
    """Nothing fires after the end."""
    gateway = full_gateway(clock=ScaledClock(1e6))
    now = gateway.scheduler.cluster.now
    gateway.stop()
    fired = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.05, fired.set_result, None)
    await fired
    assert gateway.scheduler.cluster.now == now
