"""The answers of a simulation: what the turns and programs of its window got."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import asdict, field, frozen

from thunderagent.emulator.timing import Preset
from thunderagent.simulator.bound import EngineNeed, alone_seconds
from thunderagent.simulator.records import Records

__all__ = ["Figures", "Quantiles", "figures_of", "jain_index", "quantile"]

_BLOCK_TOKENS = 16
_SPREAD_SAMPLES = 110
"""Of the 120 that 10 minutes have."""


@frozen
class Quantiles:
    """Of a sample in seconds, by nearest rank; all 0 where it is empty."""

    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    most: float = 0.0
    mean: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> Quantiles:
        """O(n log n)."""
        if not values:
            return cls()
        found = sorted(values)
        mean = math.fsum(found) / len(found)
        return cls(quantile(found, 0.5), quantile(found, 0.9), quantile(found, 0.99), found[-1], mean)


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value that ``share`` of an ascending sample do not pass; 0 where that is empty."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def jain_index(values: Sequence[float]) -> float:
    """(sum x)^2 / (n sum x^2): 1 where all are equal, 1/n where one has all; 1 for an empty sample or all 0."""
    squares = math.fsum(value * value for value in values)
    return math.fsum(values) ** 2 / (len(values) * squares) if squares else 1.0


@frozen
class Figures:
    """Of the window from the end of the warm-up to the end; a turn belongs to it if it ended there.

    Turns that were open at the end count where that is said.
    """

    window_seconds: float
    turns: int
    turns_per_minute: float
    output_tokens_per_second: float
    hit_rate: float
    """Prompt tokens found cached over all prompt tokens."""
    recomputed_tokens: int
    """Prompt tokens in full blocks that an earlier turn had computed and that were computed again."""
    idle_kv_share: float
    """Of all KV tokens, those accounted to programs without a running turn as far as there is room for them; mean."""
    engine_busy_share: float
    """Of the engines' time, that spent in steps."""
    bound_share: float
    """Of the engines' time, what these turns need at least (``bound``), or ``progress`` where no engine preempted
    anything: whichever is more. No schedule of the same turns comes over 1."""
    first_token_seconds: Quantiles
    """From a turn's arrival at the router; open turns without one count up to the end."""
    one_off_first_token_seconds: Quantiles
    """The same of turns without a program, as of a chat beside agents."""
    turn_seconds: Quantiles
    """From its arrival to its end."""
    hold_seconds: Quantiles
    """Of the turns that were held in the router, open ones included; of those still held, up to the end."""
    holds: int
    open_holds: int
    """Turns that were held at the end."""
    longest_hold_p95_seconds: float
    """The 95th percentile over programs of their longest hold, counted as in ``hold_seconds``; one-off turns left
    out."""
    small_hold_seconds: float
    """Mean of ``hold_seconds`` of the quarter of programs with the smallest contexts; 0 where none was held."""
    large_hold_seconds: float
    """The same of the quarter with the largest contexts."""
    turns_within_target: float
    """Share of turns whose first token came within the target. Open ones without a token that are older are not."""
    programs_within_target: float
    """Share of programs of whose turns, so counted, 95 % were; one-off turns left out."""
    progress: float
    """Mean over sessions: the time that their turns and tools would have taken with an engine to themselves, over
    what they took, open turns included."""
    jain_of_progress: float
    mean_program_seconds: float
    """From first arrival to end, of the programs that ended and whose client did not vanish."""
    programs_ended: int
    """Those without the vanished."""
    programs_vanished: int
    """Programs whose client vanished."""
    programs_open: int
    """Programs that had begun and not ended."""
    makespan_seconds: float | None
    """From the first arrival to the end of the last program; None where some are not done."""
    group_seconds: Quantiles
    """From the first arrival of a group to the end of its last program; of those that are not done, to the end."""
    pauses: int
    kv_spread_tokens: float
    """Fullest less emptiest replica in accounted tokens, by means over 10 minutes in which somebody always waited:
    the most of them; 0 where there are none, and on one replica."""
    moves: int
    """Turns that ran on another replica than the turn before of their program."""
    forced: int
    expired: int
    refused: int
    """Turns that the router answered with an error."""
    rejected: int
    """Turns that were too long for the engine; their programs were given up."""
    cut: int
    """Turns whose answers broke off as a replica died; their agents asked again."""
    resent: int
    """How often a dead or dying replica began no answer to a turn, and the router tried another."""
    rejected_decisions: int
    preemptions: int
    evicted_blocks: int
    per_replica_turns: tuple[int, ...] = field(factory=tuple)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Figures:
        """The inverse of ``as_dict``, also after JSON. Raises TypeError for other fields than it has."""
        read: dict[str, Any] = {
            name: Quantiles(**value) if isinstance(value, Mapping) else value for name, value in values.items()
        }
        read["per_replica_turns"] = tuple(values["per_replica_turns"])
        return cls(**read)


def figures_of(
    records: Records, preset: Preset, *, kv_tokens: int, warmup_seconds: float, target_seconds: float
) -> Figures:
    """Count what happened after ``warmup_seconds``.

    ``kv_tokens`` per replica. ``target_seconds``: within which a first token should come.
    """
    end = records.end_seconds
    window = [index for index, at in enumerate(records.ended_at) if at >= warmup_seconds]
    seconds = max(1e-9, end - warmup_seconds)
    prompts = sum(records.prompt_tokens[index] for index in window)
    totals = records.totals.since(records.warmup)
    holds = _holds(records, window)
    first = _first_tokens(records, window)
    judged = [(program, wait) for program, wait, is_open in first if not is_open or wait > target_seconds]
    small_hold_seconds, large_hold_seconds = _holds_by_size(records, window, holds)
    progress = _progress(records, preset, window)
    ended = [
        program.ended_at - program.began_at
        for program in records.programs
        if program.ended_at is not None
        and program.ended_at >= warmup_seconds
        and not program.is_one_off
        and not program.is_given_up
        and not program.is_abandoned
    ]
    vanished = [
        program
        for program in records.programs
        if program.is_abandoned and program.ended_at is not None and program.ended_at >= warmup_seconds
    ]
    idle = [share for at, share in records.idle_kv if at >= warmup_seconds]
    replicas = [0] * records.replicas
    for index in window:
        replicas[records.replica[index]] += 1
    engine_seconds = max(1e-9, seconds * records.replicas - _absent_seconds(records, warmup_seconds))
    need = _needed(records, EngineNeed(preset, kv_tokens), window, warmup_seconds, totals.preemptions)
    mean_progress = math.fsum(progress) / len(progress) if progress else 0.0
    return Figures(
        window_seconds=seconds,
        turns=len(window),
        turns_per_minute=60.0 * len(window) / seconds,
        output_tokens_per_second=sum(records.output_tokens[index] for index in window) / seconds,
        hit_rate=sum(records.cached_tokens[index] for index in window) / prompts if prompts else 0.0,
        recomputed_tokens=sum(_recomputed(records, index) for index in window),
        idle_kv_share=math.fsum(idle) / len(idle) if idle else 0.0,
        engine_busy_share=totals.busy_seconds / engine_seconds,
        bound_share=max(need / engine_seconds, 0.0 if records.totals.preemptions else mean_progress),
        first_token_seconds=Quantiles.of([wait for _, wait, _ in first]),
        one_off_first_token_seconds=Quantiles.of(
            [wait for program, wait, _ in first if records.programs[program].is_one_off]
        ),
        turn_seconds=Quantiles.of([records.ended_at[index] - records.arrived_at[index] for index in window]),
        hold_seconds=Quantiles.of([hold for _, hold in holds if hold > 0.0]),
        holds=sum(1 for _, hold in holds if hold > 0.0),
        open_holds=sum(1 for turn in records.open_turns if turn.forwarded_at is None),
        longest_hold_p95_seconds=quantile(sorted(_longest(records, holds)), 0.95),
        small_hold_seconds=small_hold_seconds,
        large_hold_seconds=large_hold_seconds,
        turns_within_target=_share(wait <= target_seconds for _, wait in judged),
        programs_within_target=_programs_within(records, judged, target_seconds),
        progress=mean_progress,
        jain_of_progress=jain_index(progress),
        mean_program_seconds=math.fsum(ended) / len(ended) if ended else 0.0,
        programs_ended=len(ended),
        programs_vanished=len(vanished),
        programs_open=sum(1 for program in records.programs if program.ended_at is None),
        makespan_seconds=_makespan(records),
        group_seconds=Quantiles.of(_group_seconds(records)),
        pauses=totals.notices.get("ProgramPaused", 0),
        kv_spread_tokens=max(records.balance.spreads(warmup_seconds, _SPREAD_SAMPLES), default=0.0),
        moves=totals.moves,
        forced=totals.notices.get("ProgramForced", 0),
        expired=totals.notices.get("ProgramExpired", 0),
        refused=totals.refused_turns,
        rejected=totals.rejected_turns,
        cut=totals.cut_turns,
        resent=totals.resent_turns,
        rejected_decisions=totals.notices.get("DecisionRejected", 0),
        preemptions=totals.preemptions,
        evicted_blocks=totals.evicted_blocks,
        per_replica_turns=tuple(replicas),
    )


def _holds(records: Records, window: Sequence[int]) -> list[tuple[int, float]]:
    """(program, seconds in the router) of the window's turns and of open ones."""
    held = [(records.program[index], records.forwarded_at[index] - records.arrived_at[index]) for index in window]
    for turn in records.open_turns:
        until = records.end_seconds if turn.forwarded_at is None else turn.forwarded_at
        held.append((turn.program, until - turn.arrived_at))
    return held


def _longest(records: Records, holds: Iterable[tuple[int, float]]) -> list[float]:
    """The longest hold of each program."""
    longest: dict[int, float] = {}
    for program, hold in holds:
        if not records.programs[program].is_one_off:
            longest[program] = max(hold, longest.get(program, 0.0))
    return list(longest.values())


def _holds_by_size(
    records: Records, window: Sequence[int], holds: Iterable[tuple[int, float]]
) -> tuple[float, float]:
    """Mean seconds of what was held, of the quarters of programs with the smallest and the largest contexts."""
    largest: dict[int, int] = {}
    for index in window:
        program = records.program[index]
        if not records.programs[program].is_one_off:
            largest[program] = max(largest.get(program, 0), records.prompt_tokens[index])
    by_size = sorted(largest, key=lambda program: largest[program])
    quarter = len(by_size) // 4
    means = list[float]()
    for group in (frozenset(by_size[:quarter]), frozenset(by_size[len(by_size) - quarter :])):
        held = [hold for program, hold in holds if hold > 0.0 and program in group]
        means.append(math.fsum(held) / len(held) if held else 0.0)
    return means[0], means[1]


def _first_tokens(records: Records, window: Sequence[int]) -> list[tuple[int, float, bool]]:
    """(program, seconds to the first token, whether it is still awaited) of the window's turns and of open ones."""
    waits = [
        (records.program[index], records.first_token_at[index] - records.arrived_at[index], False) for index in window
    ]
    for turn in records.open_turns:
        at = records.end_seconds if turn.first_token_at is None else turn.first_token_at
        waits.append((turn.program, at - turn.arrived_at, turn.first_token_at is None))
    return waits


def _absent_seconds(records: Records, since: float) -> float:
    """Of the replicas that died or joined later, the time in the window in which they were not there."""
    end = records.end_seconds
    return math.fsum(max(0.0, min(to, end) - max(at, since)) for at, to in records.absent)


def _recomputed(records: Records, index: int) -> int:
    known = records.known_tokens[index] // _BLOCK_TOKENS * _BLOCK_TOKENS
    return max(0, known - records.cached_tokens[index])


def _needed(records: Records, need: EngineNeed, window: Sequence[int], since: float, preemptions: int) -> float:
    """Engine seconds of the turns that ran within the window from begin to end."""
    by_cache = by_sequences = 0.0
    longest = 0
    for index in window:
        if records.forwarded_at[index] >= since:
            prompt, output = records.prompt_tokens[index], records.output_tokens[index]
            first, second = need.seconds(prompt, _known(records, index), output, records.shared_tokens[index])
            by_cache += first
            by_sequences += second
            longest = max(longest, prompt + output)
    return max(by_cache, by_sequences) - preemptions * need.token_seconds(longest)


def _known(records: Records, index: int) -> int:
    """What of the prompt may have been cached."""
    return max(records.known_tokens[index], records.cached_tokens[index])


def _progress(records: Records, preset: Preset, window: Sequence[int]) -> list[float]:
    """Per session that agents ran in."""
    alone: dict[int, float] = {}
    taken: dict[int, float] = {}
    for index in window:
        program = records.programs[records.program[index]]
        if program.is_one_off:
            continue
        session, tool = program.session, records.tool_seconds[index]
        seconds = alone_seconds(
            preset, records.prompt_tokens[index], _known(records, index), records.output_tokens[index]
        )
        alone[session] = alone.get(session, 0.0) + seconds + tool
        taken[session] = taken.get(session, 0.0) + records.ended_at[index] - records.arrived_at[index] + tool
    for turn in records.open_turns:
        program = records.programs[turn.program]
        if not program.is_one_off:
            taken[program.session] = taken.get(program.session, 0.0) + records.end_seconds - turn.arrived_at
    return [alone.get(session, 0.0) / seconds for session, seconds in taken.items() if seconds > 0.0]


def _share(truths: Iterable[bool]) -> float:
    told = list(truths)
    return sum(told) / len(told) if told else 0.0


def _programs_within(records: Records, judged: Iterable[tuple[int, float]], target: float) -> float:
    counts: dict[int, list[int]] = {}
    for program, wait in judged:
        if not records.programs[program].is_one_off:
            count = counts.setdefault(program, [0, 0])
            count[0] += 1
            count[1] += wait <= target
    return _share(within >= 0.95 * turns for turns, within in counts.values())


def _makespan(records: Records) -> float | None:
    ends = [program.ended_at for program in records.programs]
    if not ends or any(end is None for end in ends):
        return None
    return max(end for end in ends if end is not None) - min(program.began_at for program in records.programs)


def _group_seconds(records: Records) -> list[float]:
    groups: dict[str, tuple[float, float]] = {}
    for program in records.programs:
        if program.group is not None:
            end = records.end_seconds if program.ended_at is None else program.ended_at
            began_at, ended_at = groups.get(program.group, (program.began_at, end))
            groups[program.group] = (min(began_at, program.began_at), max(ended_at, end))
    return [ended_at - began_at for began_at, ended_at in groups.values()]
