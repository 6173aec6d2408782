"""Puts an engine's messages in order: finds what was missed, what came twice, and that the engine started anew."""

from __future__ import annotations

from enum import Enum

from attrs import define

__all__ = ["EventOrder", "Verdict"]


class Verdict(Enum):
    """What to do with a message."""

    TAKE = "take"
    SKIP = "skip"
    """It was taken from a replay already."""
    MISSED = "missed"
    """Messages from ``EventOrder.next_sequence`` on are missing before it."""
    RESTARTED = "restarted"
    """The engine counts from 0 again: its cache is a new one, and messages from 0 on may be missing."""


@define
class EventOrder:
    """Sequence numbers of one publisher: 0, 1, 2, ... since its engine's start."""

    next_sequence: int = 0
    """The first that was not taken."""
    last_live: int = -1
    """The last that came over the subscription."""

    def judge(self, sequence: int) -> Verdict:
        """A message came over the subscription, which delivers in order, once, and may leave out."""
        is_restart = sequence <= self.last_live
        self.last_live = sequence
        if is_restart:
            self.begin_anew()
            return Verdict.RESTARTED
        return self.compare(sequence)

    def compare(self, sequence: int) -> Verdict:
        """Whether a message is the next one, whatever way it came."""
        if sequence < self.next_sequence:
            return Verdict.SKIP
        return Verdict.TAKE if sequence == self.next_sequence else Verdict.MISSED

    def begin_anew(self) -> None:
        """Messages are another engine's, from 0 on."""
        self.next_sequence = 0

    def taken(self, sequence: int) -> None:
        """All up to and with this one was taken, or given up."""
        self.next_sequence = sequence + 1
