"""What an event left to be done: a bounded part of its work was, the rest is due at once, but after other events."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from attrs import define, field

from thunderagent.core.decisions import Trigger
from thunderagent.core.ids import TurnId
from thunderagent.core.turn import Turn

__all__ = ["STEPS_PER_EVENT", "Unfinished"]

STEPS_PER_EVENT = 64
"""So many decisions are carried out for one event, so many held turns offered to the policy or let in, so many
programs displaced."""


@define(eq=False, repr=False)
class Unfinished:
    """Each kind of it by itself, so that none is forgotten for another one."""

    turns: OrderedDict[TurnId, Turn] = field(factory=OrderedDict)
    """Held turns that are to be placed afresh: their program has another place, or their backend changed."""
    is_any_unasked: bool = False
    """Turns that were held for want of a backend are to be offered, now that one is there."""
    triggers: dict[Trigger, None] = field(factory=dict)
    """Why the policy is to be asked for decisions (again: some were left)."""
    is_room_wanted: bool = False
    """More room is to be made, or used, for turns that reached the hold limit."""
    steps_left: int = STEPS_PER_EVENT
    """Of the event at hand."""

    def __bool__(self) -> bool:
        return bool(self.turns or self.triggers or self.is_any_unasked or self.is_room_wanted)

    @property
    def has_offers(self) -> bool:
        """Whether held turns are to be offered; until they have been, the policy is asked for no decisions."""
        return bool(self.turns) or self.is_any_unasked

    def offer(self, turns: Iterable[Turn]) -> None:
        """Have held turns offered, each once."""
        self.turns.update((turn.id, turn) for turn in turns)

    def take_trigger(self) -> Trigger | None:
        """The one that has been left for longest, if any."""
        trigger = next(iter(self.triggers), None)
        if trigger is not None:
            del self.triggers[trigger]
        return trigger
