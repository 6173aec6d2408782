"""Tools that now and then take much longer than they do."""

from __future__ import annotations

import random
from collections.abc import Sequence

from attrs import evolve

from thunderagent.simulator.programs import Arrival, Conversation, Program, with_programs

__all__ = ["with_rare_tools"]

_SHARE = 0.01


def with_rare_tools(arrivals: Sequence[Arrival], seconds: float, seed: int) -> Sequence[Arrival]:
    """The same sessions, in which one tool call of a hundred, drawn from the seed, takes ``seconds``. What passes
    after one-off turns is no tool."""

    def change(program: Program, chance: random.Random) -> Program:
        if program.is_one_off:
            return program
        return evolve(program, conversation=_conversation(program.conversation, seconds, chance))

    return with_programs(arrivals, f"tools {seed}", change)


def _conversation(conversation: Conversation, seconds: float, chance: random.Random) -> Conversation:
    turns = []
    for turn in conversation.turns:
        is_rare = chance.random() < _SHARE
        sub_agents = tuple(_conversation(child, seconds, chance) for child in turn.sub_agents)
        tool_seconds = seconds if is_rare else turn.tool_seconds
        turns.append(evolve(turn, tool_seconds=tool_seconds, sub_agents=sub_agents))
    return evolve(conversation, turns=tuple(turns))
