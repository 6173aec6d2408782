"""When a backend counts as failed, and when as well again: rules without I/O and without a clock, which the daemon
(``backends.py``) and the simulator (``simulator/fleet.py``) go by."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define

__all__ = ["FAILED_LOOK_SECONDS", "FAILURES", "LOOK_SECONDS", "Health"]

LOOK_SECONDS = 5.0
"""Between looks at a backend that is well."""
FAILED_LOOK_SECONDS = 1.0
"""Between looks at one that fails (``Health.is_failing``)."""
FAILURES = 3
"""So many failed looks or connections in a row make a backend failed; slowness alone never does."""

_EJECTION_TURNS = 5
"""So many turns in a row that ended in an error of the backend take it out, however healthy it looks: it always
looks emptiest, and would be given every new program."""
_EJECTION_SECONDS = 10.0
_MAX_EJECTION_SECONDS = 120.0


@define(eq=False)
class Health:
    """What looks and turns told of one backend. ``look``, ``connection_failed`` and ``turn_failed`` answer whether
    ``is_failed`` changed. Times are readings of one clock of the caller's, in seconds."""

    most_failures: int = FAILURES
    is_failed: bool = False
    failures: int = 0
    """Failed looks, and connections that were not made, in a row."""
    is_turn_counted: bool = False
    """A connection that was not made was counted since the last look: however many fail at once, they are one."""
    failed_turns: int = 0
    """Turns in a row that ended in an error of the backend."""
    ejection_seconds: float = _EJECTION_SECONDS
    """How long the next ejection lasts; twice as long each time until a turn completes."""
    ejected_until: float | None = None
    """No look makes it well before that. None: it failed otherwise, or not at all."""

    @property
    def is_failing(self) -> bool:
        """Whether it is to be looked at more often."""
        return self.is_failed or self.failures > 0

    def is_ejected(self, now: float) -> bool:
        """Whether its failing turns keep it out, whatever a look says."""
        return self.ejected_until is not None and now < self.ejected_until

    def look(self, is_well: bool | None, now: float) -> bool:
        """A look is over. ``is_well`` None: it says neither, since it took too long."""
        self.is_turn_counted = False
        if is_well is None:
            return False
        if not is_well:
            return self._count_failure()
        self.failures = 0
        if not self.is_failed or self.is_ejected(now):
            return False
        self.is_failed, self.ejected_until = False, None
        return True

    def connection_failed(self) -> bool:
        """A turn could not be sent there."""
        if self.is_turn_counted:
            return False
        self.is_turn_counted = True
        return self._count_failure()

    def answer_began(self) -> None:
        """To a turn: failures before it were not in a row."""
        if not self.is_failed:
            self.failures = 0

    def turn_failed(self, now: float, can_spare: Callable[[], bool]) -> bool:
        """A turn ended in an error of the backend after its answer began. ``can_spare``: whether others can take
        over; asked only where it would be taken out."""
        if self.is_failed:
            return False
        self.failed_turns += 1
        if self.failed_turns < _EJECTION_TURNS or not can_spare():
            return False
        self.ejected_until = now + self.ejection_seconds
        self.ejection_seconds = min(_MAX_EJECTION_SECONDS, 2 * self.ejection_seconds)
        self.failed_turns, self.is_failed = 0, True
        return True

    def turn_completed(self) -> None:
        """Failed turns before it were not in a row."""
        self.failed_turns, self.ejection_seconds = 0, _EJECTION_SECONDS

    def _count_failure(self) -> bool:
        self.failures += 1
        if self.failures < self.most_failures or self.is_failed:
            return False
        self.is_failed = True
        return True
