"""A recorded trace as programs: the same turns and tool times, whatever the answers take this time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count, repeat

from attrs import define, evolve, field

from thunderagent.simulator.programs import Arrival, Conversation, Program, Shared, TurnPlan
from thunderagent.trace import TraceError, TraceTurn

__all__ = ["programs_of"]


@define(eq=False)
class _Branch:
    """A conversation's turns in the order of their arrivals."""

    name: str
    turns: list[TraceTurn] = field(factory=list)

    @property
    def began_at(self) -> float:
        return self.turns[0].arrival

    @property
    def ended_at(self) -> float:
        return max(turn.end for turn in self.turns)


def programs_of(turns: Iterable[TraceTurn], *, release_ratio: float = 1.0) -> Sequence[Arrival]:
    """One session per program of the trace, which begins when it did.

    A program's first conversation is its main one. Another begins as long after the last end of a main turn before it
    as it did; where it ended before the main one went on, that waits for it again.

    What no figure of a trace tells is what prompts have in common beyond their own history: the least that first
    turns found cached counts as the beginning that all programs share, where half of them found something.

    Raises TraceError for a trace without a turn.
    """
    programs: dict[tuple[str | None, int], dict[str, _Branch]] = {}
    numbers = count()
    for turn in turns:
        name = (turn.program, 0 if turn.program is not None else next(numbers))
        branches = programs.setdefault(name, {})
        branches.setdefault(turn.branch, _Branch(turn.branch)).turns.append(turn)
    if not programs:
        raise TraceError("the trace has no turn")
    for branches in programs.values():
        for branch in branches.values():
            branch.turns.sort(key=lambda turn: turn.arrival)
    shared = _shared(programs.values())
    first_at = min(branch.began_at for branches in programs.values() for branch in branches.values())
    arrivals = []
    for number, branches in enumerate(programs.values()):
        main, *others = sorted(branches.values(), key=lambda branch: branch.began_at)
        program = Program(_main(main, others, shared), is_one_off=main.turns[0].program is None)
        releases = repeat(number * release_ratio % 1.0 + release_ratio >= 1.0 or release_ratio >= 1.0)
        arrivals.append(Arrival(main.began_at - first_at, number, iter((program,)), iter(releases)))
    return sorted(arrivals, key=lambda arrival: arrival.at)


def _shared(programs: Iterable[dict[str, _Branch]]) -> tuple[Shared, ...]:
    found = [
        min(branches.values(), key=lambda branch: branch.began_at).turns[0].cached_tokens or 0
        for branches in programs
    ]
    some = [tokens for tokens in found if tokens]
    return (Shared("trace", min(some)),) if 2 * len(some) >= len(found) and some else ()


def _main(main: _Branch, others: Sequence[_Branch], shared: tuple[Shared, ...]) -> Conversation:
    conversation = _conversation(main, shared)
    plans = list(conversation.turns)
    awaited_until: dict[int, float] = {}
    for branch in others:
        place = max((index for index, turn in enumerate(main.turns) if turn.end <= branch.began_at), default=None)
        if place is None:
            place, since = 0, main.turns[0].end  # it began while the first turn ran: right after it is the nearest
        else:
            since = main.turns[place].end
        following = main.turns[place + 1].arrival if place + 1 < len(main.turns) else float("inf")
        is_awaited = branch.ended_at <= following
        child = evolve(
            _conversation(branch, shared),
            delay_seconds=max(0.0, branch.began_at - since),
            is_awaited=is_awaited,
        )
        plan = plans[place]
        plans[place] = evolve(plan, sub_agents=(*plan.sub_agents, child))
        if is_awaited:
            awaited_until[place] = max(awaited_until.get(place, 0.0), branch.ended_at)
    for place, plan in enumerate(plans):
        if plan.sub_agents:
            # With those that are awaited the gap is their own time, which the replay finds anew, and what came after.
            end = main.turns[place].end
            gap = max(0.0, end + plan.tool_seconds - awaited_until.get(place, end))
            plans[place] = evolve(plan, tool_seconds=0.0, after_seconds=gap)
    return evolve(conversation, turns=tuple(plans))


def _conversation(branch: _Branch, shared: tuple[Shared, ...]) -> Conversation:
    """Where a prompt is no longer than the history before it, that was cut: what was found cached is what is left of
    it, or the beginning that all share where nothing is told.
    """
    first = branch.turns[0]
    begin = sum(part.tokens for part in shared)
    if first.prompt_tokens <= begin:
        shared, begin = (), 0
    plans = []
    history = begin
    for turn, following in zip(branch.turns, [*branch.turns[1:], None], strict=True):
        gap = 0.0
        if following is not None:
            told = following.tool_seconds
            gap = max(0.0, following.arrival - turn.end) if told is None else told
        kept = None
        if turn.prompt_tokens <= history:
            kept = min(turn.prompt_tokens - 1, begin if turn.cached_tokens is None else turn.cached_tokens)
        new = turn.prompt_tokens - (history if kept is None else kept)
        plans.append(TurnPlan(new, max(1, turn.output_tokens), gap, kept, kept))
        history = turn.prompt_tokens + max(1, turn.output_tokens)
    return Conversation(tuple(plans), shared)
