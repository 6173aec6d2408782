"""``shortest-queue``: a program's place while few turns run there, else where the fewest do; holds past a limit."""

from __future__ import annotations

from collections.abc import Mapping

from thunderagent.policy import BackendId, ClusterView, OptionError, Policy, TurnView


class ShortestQueue(Policy):
    """At most ``limit`` turns run on a backend at a time (default 1000); the rest wait, oldest first."""

    name = "shortest-queue"

    def __init__(self, limit: int = 1000) -> None:
        self.limit = limit

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> ShortestQueue:
        unknown = set(options) - {"limit"}
        if unknown:
            raise OptionError(f"policy {cls.name!r} has no option {', '.join(sorted(unknown))}; it has: limit")
        limit = options.get("limit", "1000")
        if not limit.isdecimal() or int(limit) < 1:
            raise OptionError(f"policy {cls.name!r}: option limit must be a whole number above 0, got {limit!r}")
        return cls(int(limit))

    def admit(self, turn: TurnView, cluster: ClusterView) -> BackendId | None:
        """The place if it is below the limit, else the least busy backend that is."""
        if turn.place is not None and turn.place.turn_count < self.limit:
            return turn.place.id
        chosen = min(turn.eligible_backends, key=lambda backend: backend.turn_count)
        return chosen.id if chosen.turn_count < self.limit else None
