"""The replicas: some die, come back empty or join later; the scheduler is told when the router would learn of it.

A process that died refuses connections. The router notices at its looks and at turns that it forwards there, and
judges by ``Health``, as the daemon does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import define, field

from thunderagent.core import events
from thunderagent.core.ids import BackendId, TurnId
from thunderagent.core.scheduler import Scheduler
from thunderagent.emulator.leaping import LeapingEngine
from thunderagent.health import FAILED_LOOK_SECONDS, Health
from thunderagent.simulator.incidents import Addition, Failure, Incident, in_order
from thunderagent.simulator.perturbation import Perturbation
from thunderagent.simulator.replica import Replica

__all__ = ["Fleet"]

MODELS = ("model",)


@define(eq=False)
class _Watch:
    """What the router knows of one replica."""

    health: Health = field(factory=Health)
    is_look_due: bool = False
    """A look out of turn is coming."""


@define(eq=False)
class Fleet:
    """Owns the replicas. The simulation gives it the clock, a way to have things happen later, and the door to the
    scheduler."""

    scheduler: Scheduler
    engine: Callable[[], LeapingEngine]
    """A fresh one."""
    progress_seconds: float
    now: Callable[[], float]
    at: Callable[[float, Callable[[Any], None], Any], None]
    handle: Callable[[events.Event], None]
    lose: Callable[[int, dict[TurnId, int]], None]
    """Called with a replica that died and the turns that ran there, with the tokens of their answers so far."""
    perturbation: Perturbation = field(factory=Perturbation)
    replicas: list[Replica] = field(factory=list)
    index: dict[BackendId, int] = field(factory=dict)
    absent: list[tuple[float, float]] = field(factory=list)
    """(from, to) of each time in which a replica was not there."""
    _watches: list[_Watch] = field(factory=list)

    def grow(self) -> Replica:
        """One replica more; the scheduler is not told."""
        number = len(self.replicas)
        replica = Replica(BackendId(f"replica-{number}"), self.engine(), self.progress_seconds)
        self.replicas.append(replica)
        self.index[replica.id] = number
        self._watches.append(_Watch())
        return replica

    def told_capacity(self, replica: Replica) -> int:
        """KV tokens that the router believes the replica to have."""
        return self.perturbation.told_capacity(replica.engine.cache.usable_tokens)

    def plan(self, incidents: tuple[Incident, ...]) -> None:
        """Have them happen in their time."""
        for incident in in_order(incidents):
            if isinstance(incident, Addition):
                self.at(incident.at, self._join, incident.replicas)
            else:
                self.at(incident.at, self._die, incident)

    def look_around(self) -> None:
        """The round of looks that all replicas get, but for those that fail: they have looks of their own."""
        for number, watch in enumerate(self._watches):
            if not watch.is_look_due:
                self._look(number)

    def refuse_connection(self, number: int) -> None:
        """A turn was sent to a replica that is dead."""
        self._tell(number, self._watches[number].health.connection_failed())
        self._look_soon(number)

    def turn_broke_off(self, number: int, *, is_begun: bool) -> None:
        """A replica died under a turn; ``is_begun``: after its answer's first byte."""
        if not is_begun:
            self._look_soon(number)
            return
        health, available = self._watches[number].health, self.scheduler.cluster.backends
        self._tell(number, health.turn_failed(self.now(), lambda: len(available) > 1))

    def turn_completed(self, number: int) -> None:
        """On a replica."""
        self._watches[number].health.turn_completed()

    def _join(self, replicas: int) -> None:
        for _ in range(replicas):
            self.absent.append((0.0, self.now()))
            replica = self.grow()
            self.handle(events.BackendAdded(replica.id))
            self.handle(events.BackendObserved(replica.id, MODELS, self.told_capacity(replica)))
            self._look(len(self.replicas) - 1)

    def _die(self, failure: Failure) -> None:
        replica, until = self.replicas[failure.replica], failure.until
        self.absent.append((failure.at, float("inf") if until is None else until))
        if until is not None:
            self.at(until, self._come_back, replica)
        self.lose(failure.replica, replica.die(self.now(), self.engine()))

    def _come_back(self, replica: Replica) -> None:
        replica.is_up = True

    def _look_soon(self, number: int) -> None:
        """At once, unless it is looked at each second anyway."""
        watch = self._watches[number]
        if not watch.is_look_due:
            watch.is_look_due = True
            self.at(self.now(), self._look_again, number)

    def _look_again(self, number: int) -> None:
        self._watches[number].is_look_due = False
        self._look(number)

    def _observe(self, replica: Replica) -> None:
        """What metrics say. The engines' number of KV tokens never changes: it is told once."""
        engine, perturbation = replica.engine, self.perturbation
        if not perturbation.has_metrics:
            return
        seen = events.BackendObserved(
            replica.id,
            kv_usage_ratio=engine.cache.usage_ratio,
            requests_running=engine.running,
            requests_waiting=engine.waiting,
        )
        if perturbation.metrics_delay_seconds:
            self.at(self.now() + perturbation.metrics_delay_seconds, self.handle, seen)
        else:
            self.handle(seen)

    def _look(self, number: int) -> None:
        """What health page and metrics say, as the daemon reads them."""
        replica, watch = self.replicas[number], self._watches[number]
        if replica.is_up:
            self._observe(replica)
        self._tell(number, watch.health.look(replica.is_up, self.now()))
        if watch.health.is_failing and not watch.is_look_due:
            watch.is_look_due = True
            self.at(self.now() + FAILED_LOOK_SECONDS, self._look_again, number)

    def _tell(self, number: int, is_changed: bool) -> None:
        if not is_changed:
            return
        backend = self.replicas[number].id
        if self._watches[number].health.is_failed:
            self.handle(events.BackendFailed(backend, "it does not answer"))
        else:
            self.handle(events.BackendRecovered(backend))
