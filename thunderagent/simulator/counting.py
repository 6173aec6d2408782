"""From the records of a run to its figures: what the turns and programs of its window got."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from attrs import frozen

from thunderagent.emulator.timing import Preset
from thunderagent.simulator.bound import EngineNeed, alone_seconds
from thunderagent.simulator.figures import Figures, Quantiles, jain_index, quantile
from thunderagent.simulator.records import Records, Totals

__all__ = ["figures_of"]

_BLOCK_TOKENS = 16


def figures_of(
    records: Records, preset: Preset, *, kv_tokens: int, warmup_seconds: float, target_seconds: float
) -> Figures:
    """Count what happened after ``warmup_seconds``.

    ``kv_tokens`` per replica. ``target_seconds``: within which a first token should come.
    """
    window = _Window.of(records, warmup_seconds)
    need = EngineNeed(preset, kv_tokens)
    return Figures(
        **_work(window),
        **_use_of_engines(window, preset, need),
        **_waits(window, target_seconds),
        **_programs(window),
        **_happenings(window),
    )


@frozen
class _Window:
    """What counts of the records."""

    records: Records
    since: float
    """The end of the warm-up."""
    seconds: float
    turns: Sequence[int]
    """Indices of those that ended in it."""
    totals: Totals

    @classmethod
    def of(cls, records: Records, since: float) -> _Window:
        seconds = max(1e-9, records.end_seconds - since)
        turns = [index for index, at in enumerate(records.ended_at) if at >= since]
        return cls(records, since, seconds, turns, records.totals.since(records.warmup))


def _work(window: _Window) -> dict[str, Any]:
    """What was done."""
    records, turns = window.records, window.turns
    prompts = sum(records.prompt_tokens[index] for index in turns)
    replicas = [0] * records.replicas
    for index in turns:
        replicas[records.replica[index]] += 1
    return {
        "window_seconds": window.seconds,
        "turns": len(turns),
        "turns_per_minute": 60.0 * len(turns) / window.seconds,
        "output_tokens_per_second": sum(records.output_tokens[index] for index in turns) / window.seconds,
        "hit_rate": sum(records.cached_tokens[index] for index in turns) / prompts if prompts else 0.0,
        "recomputed_tokens": sum(_recomputed(records, index) for index in turns),
        "per_replica_turns": tuple(replicas),
    }


def _use_of_engines(window: _Window, preset: Preset, need: EngineNeed) -> dict[str, Any]:
    """Of their time and their cache; and the pace of sessions, which bounds it too."""
    records, totals = window.records, window.totals
    idle = [share for at, share in records.idle_kv if at >= window.since]
    engine_seconds = max(1e-9, window.seconds * records.replicas - _absent_seconds(records, window.since))
    needed = _needed(records, need, window.turns, window.since, totals.preemptions)
    progress = _progress(records, preset, window.turns)
    mean_progress = _mean(progress)
    return {
        "idle_kv_share": _mean(idle),
        "engine_busy_share": totals.busy_seconds / engine_seconds,
        "bound_share": max(needed / engine_seconds, 0.0 if records.totals.preemptions else mean_progress),
        "progress": mean_progress,
        "jain_of_progress": jain_index(progress),
    }


def _waits(window: _Window, target_seconds: float) -> dict[str, Any]:
    """How long turns took, and how long they were held."""
    records, turns = window.records, window.turns
    holds = _holds(records, turns)
    first = _first_tokens(records, turns)
    one_off = [wait for program, wait, _ in first if records.programs[program].is_one_off]
    small_hold_seconds, large_hold_seconds = _holds_by_size(records, turns, holds)
    judged = [(program, wait) for program, wait, is_open in first if not is_open or wait > target_seconds]
    return {
        "first_token_seconds": Quantiles.of([wait for _, wait, _ in first]),
        "one_off_first_token_seconds": Quantiles.of(one_off),
        "turn_seconds": Quantiles.of([records.ended_at[index] - records.arrived_at[index] for index in turns]),
        "hold_seconds": Quantiles.of([hold for _, hold in holds if hold > 0.0]),
        "holds": sum(1 for _, hold in holds if hold > 0.0),
        "open_holds": sum(1 for turn in records.open_turns if turn.forwarded_at is None),
        "longest_hold_p95_seconds": quantile(sorted(_longest(records, holds)), 0.95),
        "small_hold_seconds": small_hold_seconds,
        "large_hold_seconds": large_hold_seconds,
        "turns_within_target": _share(wait <= target_seconds for _, wait in judged),
        "programs_within_target": _programs_within(records, judged, target_seconds),
    }


def _programs(window: _Window) -> dict[str, Any]:
    """What became of them."""
    records = window.records
    over = [
        (program, program.ended_at - program.began_at)
        for program in records.programs
        if program.ended_at is not None and program.ended_at >= window.since
    ]
    ended = [
        seconds
        for program, seconds in over
        if not program.is_one_off and not program.is_given_up and not program.is_abandoned
    ]
    return {
        "mean_program_seconds": _mean(ended) if ended else None,
        "programs_ended": len(ended),
        "programs_vanished": sum(1 for program, _ in over if program.is_abandoned),
        "programs_open": sum(1 for program in records.programs if program.ended_at is None),
        "makespan_seconds": _makespan(records),
        "group_seconds": Quantiles.of(_group_seconds(records)),
    }


def _happenings(window: _Window) -> dict[str, Any]:
    """How often this and that happened."""
    totals = window.totals
    return {
        "pauses": totals.notices.get("ProgramPaused", 0),
        "kv_spread_tokens": max(window.records.balance.spreads(window.since), default=0.0),
        "moves": totals.moves,
        "forced": totals.notices.get("ProgramForced", 0),
        "expired": totals.notices.get("ProgramExpired", 0),
        "refused": totals.refused_turns,
        "rejected": totals.rejected_turns,
        "cut": totals.cut_turns,
        "resent": totals.resent_turns,
        "rejected_decisions": totals.notices.get("DecisionRejected", 0),
        "preemptions": totals.preemptions,
        "evicted_blocks": totals.evicted_blocks,
    }


def _mean(values: Sequence[float]) -> float:
    """0 where there are none."""
    return math.fsum(values) / len(values) if values else 0.0


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
        means.append(_mean(held))
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
