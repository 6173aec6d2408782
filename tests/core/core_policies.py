"""Policies for tests of the core: one that does as the test says, and one that does all it can to do harm."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from thunderagent.policy import (
    Admit,
    AdmitTurn,
    BackendId,
    BackendView,
    ClusterView,
    Decision,
    Move,
    Pause,
    Policy,
    ProgramId,
    Reconsider,
    Trigger,
    TurnId,
    TurnView,
    Yield,
)

__all__ = ["Adversary", "Scripted", "anywhere", "hold", "where_it_fits"]

Answer = Callable[[TurnView, ClusterView], Any]


def anywhere(turn: TurnView, cluster: ClusterView) -> BackendId:
    """The place, else the first backend."""
    return turn.eligible_backends[0].id if turn.place is None else turn.place.id


def hold(turn: TurnView, cluster: ClusterView) -> None:
    """Let everything wait."""


def where_it_fits(turn: TurnView, cluster: ClusterView) -> BackendId | None:
    """The place, else the first backend with room."""
    if turn.place is not None:
        return turn.place.id
    return next((backend.id for backend in turn.eligible_backends if cluster.fits(turn, backend)), None)


class Scripted(Policy):
    """Answers with ``answer``, and hands out ``decisions`` once, at the next rebalance."""

    name = "scripted"

    def __init__(self, answer: Answer = anywhere, *, reconsiders: bool = True) -> None:
        self.answer, self.reconsiders = answer, reconsiders
        self.decisions: list[Any] = []
        self.asked: list[TurnId] = []
        self.triggers: list[Trigger] = []

    def admit(self, turn: TurnView, cluster: ClusterView) -> BackendId | None:
        self.asked.append(turn.id)
        return self.answer(turn, cluster)

    def rebalance(self, cluster: ClusterView, trigger: Trigger) -> Sequence[Decision]:
        self.triggers.append(trigger)
        decisions, self.decisions = self.decisions, []
        return [*decisions, *([Reconsider()] if self.reconsiders else [])]


class Adversary(Policy):
    """Random answers and decisions, mostly illegal, and now and then an exception."""

    name = "adversary"
    tick_seconds = 7.0

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def admit(self, turn: TurnView, cluster: ClusterView) -> BackendId | None:
        self._may_raise()
        chosen = self.random.choice([None, "A", "B", "C", "nowhere", 7, turn.place, *turn.eligible_backends])
        return getattr(chosen, "id", chosen)  # type: ignore[return-value]

    def rebalance(self, cluster: ClusterView, trigger: Trigger) -> Sequence[Decision]:
        self._may_raise()
        if self.random.random() < 0.05:
            return None  # type: ignore[return-value]
        self.wake_at = self.random.choice([None, "soon", cluster.now - 1.0, cluster.now, cluster.now + 3.0, math.nan])
        return [self._decision(cluster) for _ in range(self.random.randint(0, 4))]

    def placed(self, turn: TurnView, backend: BackendView, cluster: ClusterView) -> None:
        self._may_raise()

    def keep_seconds(self, backend: BackendView, cluster: ClusterView) -> float:
        self._may_raise()
        return self.random.choice([0.0, 5.0, math.inf, math.nan, "for ever"])  # type: ignore[return-value]

    def observe(self, event: object, cluster: ClusterView) -> None:
        self._may_raise()

    def _may_raise(self) -> None:
        if self.random.random() < 0.05:
            raise RuntimeError("no idea")

    def _decision(self, cluster: ClusterView) -> Any:
        draw = self.random
        program = ProgramId(f"p{draw.randint(0, 13)}")
        backend = BackendId(draw.choice(["A", "B", "C", "nowhere"]))
        turns = [waiter.turn.id for waiter in cluster.waiting()]
        choices = [
            Admit(program, backend),
            Move(program, backend),
            Yield(program),
            Pause(program),
            AdmitTurn(draw.choice([*turns, TurnId(0)]), backend),
            Reconsider(),
            "nonsense",
            None,
        ]
        return draw.choice(choices)
