"""``round-robin``: each turn to the next backend, with no idea of programs. The baseline."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import ClassVar

from attrs import define, field

from thunderagent.policy import BackendId, ClusterView, Policy, TurnView

__all__ = ["RoundRobin"]

_MODELS = 256
"""Rotations remembered. Backends whose models are unknown take any name that a client makes up."""


@define(eq=False)
class RoundRobin(Policy):
    """Takes the backends of each model in turn; never holds. What a plain load balancer does to agents.

    Next is the eligible backend that has waited longest for a turn of the model; where several never had one, for a
    turn of any model. So each model's turns are even over its backends, however models interleave, and a backend
    that joins, fails or comes back changes nothing in the order of the others.
    """

    name: ClassVar[str] = "round-robin"
    _turns: int = 0
    _last: dict[BackendId, int] = field(factory=dict)
    """The number of the last turn that each backend got."""
    _rotations: OrderedDict[str | None, dict[BackendId, int]] = field(factory=OrderedDict)
    """The same for each model, the one used last at the end."""

    def admit(self, turn: TurnView, cluster: ClusterView) -> BackendId:
        """The next backend of the model. O(backends)."""
        last, rotation = self._last, self._rotation_of(turn.model)
        chosen = min(turn.eligible_backends, key=lambda entry: (rotation.get(entry.id, 0), last.get(entry.id, 0))).id
        self._turns += 1
        rotation[chosen] = last[chosen] = self._turns
        if len(rotation) > 2 * len(cluster.backends) + 1:
            self._rotations[turn.model] = _only(cluster, rotation)
        if len(last) > 2 * len(cluster.backends) + 1:
            self._last = _only(cluster, last)
        return chosen

    def _rotation_of(self, model: str | None) -> dict[BackendId, int]:
        rotation = self._rotations.get(model)
        if rotation is None:
            rotation = self._rotations[model] = {}
            if len(self._rotations) > _MODELS:
                self._rotations.popitem(last=False)
        else:
            self._rotations.move_to_end(model)
        return rotation


def _only(cluster: ClusterView, turns: Mapping[BackendId, int]) -> dict[BackendId, int]:
    """Those of the backends that are there: others may never come back."""
    return {backend.id: turns[backend.id] for backend in cluster.backends if backend.id in turns}
