"""Recounts everything from the turns up and compares it with the running totals and the indexes.

O(all programs and turns): after every test, and on demand in the daemon.
"""

from __future__ import annotations

from collections import Counter
from math import isclose

from thunderagent.core.backend import Backend
from thunderagent.core.cluster import Cluster
from thunderagent.core.ids import PrefixKey
from thunderagent.core.program import Branch, Program, Standing, Status
from thunderagent.core.queue import LineKey
from thunderagent.core.sizes import NO_SIZES
from thunderagent.core.turn import NO_TURNS, TurnStatus

__all__ = ["InvariantViolated", "check", "violations"]


class InvariantViolated(AssertionError):
    """The totals are not what a recount gives: a bug in the core."""

    def __init__(self, found: list[str]) -> None:
        super().__init__(found)
        self.found = found

    def __str__(self) -> str:
        return "; ".join(self.found)


def check(cluster: Cluster) -> None:
    """Recount.

    Raises:
        InvariantViolated: with every difference found.
    """
    found = violations(cluster)
    if found:
        raise InvariantViolated(found)


def violations(cluster: Cluster) -> list[str]:
    """Every difference between the books and a recount, in words; empty when they agree."""
    found: list[str] = []
    _expect(found, "what stands for no turns", NO_TURNS, {})
    _expect(found, "what stands for no sizes", NO_SIZES, [])
    _check_turns(cluster, found)
    _check_programs(cluster, found)
    _check_queue(cluster, found)
    branches = _live_branches(cluster)
    for backend in cluster.backend_by_id.values():
        _check_backend(cluster, backend, branches, found)
    _check_prefixes(cluster, branches, found)
    return found


def _expect(found: list[str], what: str, have: object, want: object) -> None:
    if have != want:
        found.append(f"{what} is {have!r}, a recount gives {want!r}")


def _live_branches(cluster: Cluster) -> list[Branch]:
    """Branches of known programs, and those that only a turn still refers to."""
    branches = {id(b): b for p in cluster.program_by_id.values() for b in p.branches.values()}
    branches |= {id(turn.branch): turn.branch for turn in cluster.turn_by_id.values()}
    return list(branches.values())


def _check_turns(cluster: Cluster, found: list[str]) -> None:
    for turn in cluster.turn_by_id.values():
        waiter = cluster.queue.of(turn)
        is_queued = waiter is not None and turn.id in waiter.turns
        if turn.status is TurnStatus.HELD:
            _expect(found, f"turn {turn.id} held: in the queue", is_queued, True)
            _expect(found, f"turn {turn.id} held: its backend", turn.backend, None)
        elif turn.status is TurnStatus.FORWARDED:
            _expect(found, f"turn {turn.id} forwarded: in the queue", is_queued, False)
            backend = turn.backend
            _expect(found, f"turn {turn.id} on its backend", backend and turn.id in backend.forwarded, True)
            _expect(found, f"turn {turn.id} in its branch", turn.id in turn.branch.forwarded, True)
        else:
            found.append(f"turn {turn.id} is {turn.status.value} and still known")
        program = turn.program
        if program is not None:
            home = program.held if turn.status is TurnStatus.HELD else program.forwarded
            _expect(found, f"turn {turn.id} in its program", turn.id in home, True)


def _check_programs(cluster: Cluster, found: list[str]) -> None:
    for program in cluster.program_by_id.values():
        name = f"program {program.id!r} ({program.status.value})"
        is_placed = program.status in (Status.ADMITTED, Status.YIELDING)
        _expect(found, f"{name}: placed", program.place is not None, is_placed)
        _expect(found, f"{name}: among the idle", program.id in cluster.idle, program.is_idle)
        is_paused = program.status is Status.PAUSED
        _expect(found, f"{name}: among the paused", program.id in cluster.paused_by_id, is_paused)
        kept_tokens = sum(branch.kept_tokens for branch in program.branches.values())
        _expect(found, f"{name}: total tokens", program.total_tokens, kept_tokens)
        _expect(found, f"{name}: need", program.need_tokens, _need_tokens(program))
        _expect(found, f"{name}: its group", program.group is not None, program.place is not None)
        if program.status is Status.RELEASED:
            found.append(f"{name} is still known")
        if program.place is not None:
            _expect(found, f"{name}: place takes turns", program.place.is_available, True)
        for turn in (*program.held.values(), *program.forwarded.values()):
            _expect(found, f"{name}: turn {turn.id} known", turn.id in cluster.turn_by_id, True)
        if program.status is Status.YIELDING:
            runs = any(turn.backend is program.place for turn in program.forwarded.values())
            _expect(found, f"{name}: has a running turn", runs, True)
    paused_idle = {program.id for program in cluster.paused_by_id.values() if program.is_idle}
    _expect(found, "paused and idle programs", {program.id for _, _, program in cluster.paused_idle}, paused_idle)
    keys = [(tokens, sequence) for tokens, sequence, _ in cluster.paused_idle]
    wanted = sorted((program.kept_tokens, program.sequence) for _, _, program in cluster.paused_idle)
    _expect(found, "paused and idle programs sorted", keys, wanted)
    idle_times = [program.idle_since for program in cluster.idle.values()]
    _expect(found, "idle programs by time", idle_times, sorted(idle_times))
    _expect(found, "idle programs known", set(cluster.idle) <= set(cluster.program_by_id), True)
    _expect(found, "paused programs known", set(cluster.paused_by_id) <= set(cluster.program_by_id), True)


def _check_queue(cluster: Cluster, found: list[str]) -> None:
    queue = cluster.queue
    held = [turn for turn in cluster.turn_by_id.values() if turn.status is TurnStatus.HELD]
    _expect(found, "held turns", queue.turn_count, len(held))
    lines: dict[LineKey, set[int]] = {}
    for waiter in queue.waiters.values():
        _expect(found, f"{waiter} has turns", bool(waiter.turns), True)
        asking = [turn for turn in waiter.turns.values() if turn.asks]
        served = [turn for turn in asking if turn.serving.backends]
        turn = (served or asking or list(waiter.turns.values()))[0]
        _expect(found, f"first turn of {waiter}", waiter.turn, turn)
        key = queue.line_for(turn) if turn.asks and not waiter.is_urgent else None
        _expect(found, f"line of {waiter}", waiter.line, key)
        if key is not None:
            lines.setdefault(key, set()).add(id(waiter))
        need_tokens = turn.need_tokens if waiter.program is None else _need_tokens(waiter.program)
        _expect(found, f"need of {waiter}", waiter.need_tokens, need_tokens)
    have = {key: {id(waiter) for waiter in line} for key, line in queue.lines.items()}
    _expect(found, "lines of the queue", have, lines)
    served_lines = [line for line in queue.lines.values() if line[0].turn.serving.backends]
    _expect(found, "open lines", {id(line) for line in queue.open_lines()}, {id(line) for line in served_lines})
    for line in queue.lines.values():
        keys = [waiter.order for waiter in line]
        _expect(found, "line sorted", keys, sorted(keys))
    mixed = {key for key, waiter in queue.waiters.items() if len({turn.model for turn in waiter.turns.values()}) > 1}
    _expect(found, "waiters of several models", mixed <= set(queue.mixed) <= set(queue.waiters), True)
    beside = {turn.id for turn in held if turn.waits_alone and turn.program is not None}
    _expect(found, "turns beside their program's place", set(queue.beside), beside)


def _need_tokens(program: Program) -> int:
    need = {branch: branch.kept_tokens for branch in program.branches.values()}
    for turn in (*program.held.values(), *program.forwarded.values()):
        if not turn.waits_alone:
            need[turn.branch] = max(need.get(turn.branch, 0), turn.need_tokens)
    return sum(need.values())


def _check_backend(cluster: Cluster, backend: Backend, branches: list[Branch], found: list[str]) -> None:
    charges = [charge for branch in branches if (charge := branch.charge_on(backend)) is not None]
    holders = Counter(key for charge in charges for key in charge.prefixes)
    own_tokens: Counter[str] = Counter()
    guest_tokens = 0
    for charge in charges:
        alone = tuple(key for key in charge.prefixes if holders[key] == 1)
        recounted_tokens = charge.bare_tokens + _prefix_tokens(cluster, alone)
        _expect(found, f"own tokens of branch {charge.branch.id!r}", charge.own_tokens, recounted_tokens)
        program = charge.branch.program
        if program is not None and program.place is backend:
            own_tokens[program.id] += recounted_tokens
        else:
            guest_tokens += recounted_tokens
        there = [turn for turn in charge.branch.forwarded.values() if turn.backend is backend]
        prompts = sorted(turn.prompt_tokens for turn in there)
        _expect(found, f"prompts of branch {charge.branch.id!r} on {backend.id}", charge.prompts, prompts)
    for branch in branches:
        held = branch.charge_on(backend)
        charged = 0 if held is None else held.bare_tokens + _prefix_tokens(cluster, held.prefixes)
        _expect(found, f"charge of branch {branch.id!r} on {backend.id}", charged, _recount(branch, backend))
    _expect(found, f"guest tokens on {backend.id}", backend.guest_tokens, guest_tokens)
    have = {key: len(prefix.holders) for key, prefix in backend.prefixes.items()}
    _expect(found, f"prefixes on {backend.id}", have, dict(holders))
    shared_tokens = _prefix_tokens(cluster, tuple(key for key, count in holders.items() if count > 1))
    _expect(found, f"shared tokens on {backend.id}", backend.shared_tokens, shared_tokens)
    saved_tokens = sum(_prefix_tokens(cluster, (key,)) * (count - 1) for key, count in holders.items())
    _expect(found, f"saved tokens on {backend.id}", backend.saved_tokens, saved_tokens)
    accounted_tokens = shared_tokens + guest_tokens + sum(own_tokens.values())
    _expect(found, f"accounted tokens on {backend.id}", backend.accounted_tokens, accounted_tokens)
    placed = [program for program in cluster.program_by_id.values() if program.place is backend]
    _check_placed(cluster, backend, placed, own_tokens, found)
    running = {turn.id for turn in cluster.turn_by_id.values() if turn.backend is backend}
    _expect(found, f"turns on {backend.id}", set(backend.forwarded), running)
    reserved = [waiter for waiter in cluster.queue.waiters.values() if waiter.is_urgent]
    if not reserved:
        _expect(found, f"reserved tokens on {backend.id} with no urgent turn", backend.reserved_tokens, 0)


def _check_placed(
    cluster: Cluster, backend: Backend, placed: list[Program], own_tokens: Counter[str], found: list[str]
) -> None:
    for program in placed:
        _expect(found, f"own tokens of {program.id!r}", program.own_tokens, own_tokens[program.id])
    _expect(found, f"programs on {backend.id}", backend.program_count, len(placed))
    for standing in Standing:
        members = [program for program in placed if program.standing is standing]
        group = backend.group(standing)
        name = f"{standing.value} programs on {backend.id}"
        _expect(found, name, {program.id for _, _, program in group.by_size}, {program.id for program in members})
        _expect(found, f"{name} by time", set(group.by_time), {program.id for program in members})
        keys = [(tokens, sequence) for tokens, sequence, _ in group.by_size]
        wanted = sorted((program.own_tokens, program.sequence) for program in members)
        _expect(found, f"{name} sorted", keys, wanted)
        total = sum(program.own_tokens for program in members)
        _expect(found, f"{standing.value} tokens on {backend.id}", group.tokens, total)
    paused = [program for program in cluster.paused_by_id.values() if program.origin == backend.id]
    have_paused = (backend.paused_count, backend.paused_tokens)
    recounted_paused = (len(paused), sum(program.kept_tokens for program in paused))
    _expect(found, f"paused programs of {backend.id}", have_paused, recounted_paused)
    for half_life_seconds, decay in backend.acting.decays.items():
        recounted = sum(
            program.own_tokens * 2.0 ** -((cluster.now - program.acting_since) / half_life_seconds)
            for program in placed
            if program.standing is Standing.ACTING
        )
        if not isclose(decay.tokens(cluster.now), recounted, rel_tol=1e-6, abs_tol=1e-3):
            found.append(f"decayed tokens on {backend.id} are {decay.tokens(cluster.now)}, not {recounted}")


def _recount(branch: Branch, backend: Backend) -> int:
    """The rule of the ledger, from its sources."""
    running = [turn for turn in branch.forwarded.values() if turn.backend is backend]
    prompt_tokens = max((turn.prompt_tokens for turn in running), default=0)
    running_tokens = prompt_tokens + sum(turn.output_tokens for turn in running)
    is_home = branch.program is not None and branch.program.place is backend
    return max(running_tokens, branch.kept_tokens) if is_home else running_tokens


def _prefix_tokens(cluster: Cluster, keys: tuple[PrefixKey, ...]) -> int:
    return sum(cluster.ledger.prefixes[key].tokens for key in keys)


def _check_prefixes(cluster: Cluster, branches: list[Branch], found: list[str]) -> None:
    open_turns = Counter(id(turn.branch) for turn in cluster.turn_by_id.values())
    for branch in branches:
        _expect(found, f"open turns of branch {branch.id!r}", branch.open_turns, open_turns[id(branch)])
    named = Counter(key for branch in branches for key in branch.prefixes)
    have = {key: known.branches for key, known in cluster.ledger.prefixes.items()}
    _expect(found, "known prefixes", have, dict(named))
