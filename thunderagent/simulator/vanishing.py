"""Clients that vanish: some programs stop after one of their turns, and nobody says so."""

from __future__ import annotations

import random
from collections.abc import Sequence

from attrs import evolve

from thunderagent.simulator.programs import Arrival, Program, with_programs

__all__ = ["with_vanishing"]


def with_vanishing(arrivals: Sequence[Arrival], ratio: float, seed: int) -> Sequence[Arrival]:
    """The same sessions, of whose programs ``ratio`` (0 to 1) end after a turn drawn from the seed. One-off turns are
    over with their answer as it is."""
    if not ratio:
        return arrivals

    def change(program: Program, chance: random.Random) -> Program:
        vanishes = chance.random() < ratio
        turns = program.conversation.turns
        last = chance.randrange(len(turns))
        if not vanishes or program.is_one_off:
            return program
        end = evolve(turns[last], tool_seconds=0.0, after_seconds=0.0, sub_agents=())
        conversation = evolve(program.conversation, turns=(*turns[:last], end))
        return evolve(program, conversation=conversation, is_abandoned=True)

    return with_programs(arrivals, f"vanish {seed}", change)
