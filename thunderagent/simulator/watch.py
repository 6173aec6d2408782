"""When the router takes a replica for failed, and when for well again: the daemon's rules, without its connections.

A process that died refuses connections. The router notices at its looks and at turns that it forwards there.
"""

from __future__ import annotations

from attrs import define

__all__ = ["FAILED_LOOK_SECONDS", "Watch"]

# As in ``thunderagent.backends``, which needs an event loop; a test holds them against one another.
FAILED_LOOK_SECONDS = 1.0
"""Between looks at a replica that fails."""
FAILURES = 3
EJECTION_TURNS = 5
EJECTION_SECONDS = 10.0
MAX_EJECTION_SECONDS = 120.0


@define(eq=False)
class Watch:
    """What the router knows of one replica's health. Each call answers whether ``is_failed`` changed."""

    is_failed: bool = False
    failures: int = 0
    """Looks and connections in a row that failed."""
    is_turn_counted: bool = False
    """A connection was counted since the last look: however many fail, they are one."""
    is_look_due: bool = False
    """A look out of turn is coming."""
    broken_answers: int = 0
    """In a row."""
    ejection_seconds: float = EJECTION_SECONDS
    ejected_until: float | None = None
    """No look makes it well before that. None: it failed otherwise, or not at all."""

    @property
    def is_failing(self) -> bool:
        """Whether it is looked at more often."""
        return self.is_failed or self.failures > 0

    def look(self, is_up: bool, now: float) -> bool:
        """The router looks at the replica."""
        self.is_turn_counted = False
        if not is_up:
            return self._count_failure()
        self.failures = 0
        if not self.is_failed or (self.ejected_until is not None and now < self.ejected_until):
            return False
        self.is_failed, self.ejected_until = False, None
        return True

    def connection_refused(self) -> bool:
        """A turn could not be sent there."""
        if self.is_turn_counted:
            return False
        self.is_turn_counted = True
        return self._count_failure()

    def answer_broke_off(self, now: float, *, can_spare: bool) -> bool:
        """After its first byte. ``can_spare``: other replicas could take over."""
        if self.is_failed:
            return False
        self.broken_answers += 1
        if self.broken_answers < EJECTION_TURNS or not can_spare:
            return False
        self.ejected_until = now + self.ejection_seconds
        self.ejection_seconds = min(MAX_EJECTION_SECONDS, 2 * self.ejection_seconds)
        self.broken_answers, self.is_failed = 0, True
        return True

    def turn_completed(self) -> None:
        """Broken answers before it were not in a row."""
        self.broken_answers, self.ejection_seconds = 0, EJECTION_SECONDS

    def _count_failure(self) -> bool:
        self.failures += 1
        if self.failures < FAILURES or self.is_failed:
            return False
        self.is_failed = True
        return True
