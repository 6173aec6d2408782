"""The story of the last events and commands, kept in memory, told with internal errors and on request."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from attrs import define, field

from thunderagent.core.commands import Command
from thunderagent.core.events import Event

__all__ = ["Entry", "Journal"]

Entry = tuple[float, Event, tuple[Command, ...]]


@define(eq=False, repr=False)
class Journal:
    """The last ``length`` events, each with the reading of the clock and the commands that came of it."""

    length: int = 256
    _entries: deque[Entry] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._entries = deque(maxlen=self.length)

    def record(self, now: float, event: Event, commands: Sequence[Command]) -> None:
        """Append one event; the oldest gives way."""
        self._entries.append((now, event, tuple(commands)))

    def entries(self) -> list[Entry]:
        """Oldest first."""
        return list(self._entries)

    def lines(self) -> list[str]:
        """One line an entry, for people: time, event, commands."""
        return [
            f"{now:.3f} {event} -> {', '.join(str(command) for command in commands) or 'nothing'}"
            for now, event, commands in self._entries
        ]
