"""Recounts everything from the turns up and compares it with the running totals and the indexes.

O(all programs and turns): after every test, and on demand in the daemon.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isclose

from thunderagent.core.backend import Backend, Charge, Group
from thunderagent.core.cluster import Cluster
from thunderagent.core.ids import PrefixKey, ProgramId
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
    _expect(found, NO_TURNS, {}, "what stands for no turns")
    _expect(found, NO_SIZES, [], "what stands for no sizes")
    _check_turns(cluster, found)
    _check_programs(cluster, found)
    _check_queue(cluster, found)
    branches = _live_branches(cluster)
    for backend in cluster.backend_by_id.values():
        _check_backend(cluster, backend, branches, found)
    _check_prefixes(cluster, branches, found)
    return found


def _expect(found: list[str], have: object, want: object, what: str, *names: object) -> None:
    """``what``, with its ``names`` as for ``str.format``, is put into words only where the two differ: tests recount
    after each of a million events, and words for what is right took a third of the time."""
    if have != want:
        found.append(f"{what.format(*names)} is {have!r}, a recount gives {want!r}")


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
            _expect(found, is_queued, True, "turn {} held: in the queue", turn.id)
            _expect(found, turn.backend, None, "turn {} held: its backend", turn.id)
        elif turn.status is TurnStatus.FORWARDED:
            _expect(found, is_queued, False, "turn {} forwarded: in the queue", turn.id)
            backend = turn.backend
            _expect(found, backend and turn.id in backend.forwarded, True, "turn {} on its backend", turn.id)
            _expect(found, turn.id in turn.branch.forwarded, True, "turn {} in its branch", turn.id)
        else:
            found.append(f"turn {turn.id} is {turn.status.value} and still known")
        program = turn.program
        if program is not None:
            home = program.held if turn.status is TurnStatus.HELD else program.forwarded
            _expect(found, turn.id in home, True, "turn {} in its program", turn.id)


def _check_programs(cluster: Cluster, found: list[str]) -> None:
    for program in cluster.program_by_id.values():
        _check_program(cluster, program, found)
    paused_idle = {program.id for program in cluster.paused_by_id.values() if program.is_idle}
    _expect(found, {program.id for _, _, program in cluster.paused_idle}, paused_idle, "paused and idle programs")
    keys = [(tokens, sequence) for tokens, sequence, _ in cluster.paused_idle]
    wanted = sorted((program.kept_tokens, program.sequence) for _, _, program in cluster.paused_idle)
    _expect(found, keys, wanted, "paused and idle programs sorted")
    idle_times = [program.idle_since for program in cluster.idle.values()]
    _expect(found, idle_times, sorted(idle_times), "idle programs by time")
    _expect(found, cluster.idle.keys() <= cluster.program_by_id.keys(), True, "idle programs known")
    _expect(found, cluster.paused_by_id.keys() <= cluster.program_by_id.keys(), True, "paused programs known")


def _check_program(cluster: Cluster, program: Program, found: list[str]) -> None:
    status, place = program.status, program.place
    is_placed = status is Status.ADMITTED or status is Status.YIELDING
    _expect(found, place is not None, is_placed, "{!r}: placed", program)
    _expect(found, program.id in cluster.idle, program.is_idle, "{!r}: among the idle", program)
    _expect(found, program.id in cluster.paused_by_id, status is Status.PAUSED, "{!r}: among the paused", program)
    _expect(found, program.total_tokens, program.kept_tokens, "{!r}: total tokens", program)
    _expect(found, program.need_tokens, _need_tokens(program), "{!r}: need", program)
    _expect(found, program.group is not None, place is not None, "{!r}: its group", program)
    if status is Status.RELEASED:
        found.append(f"{program!r} is still known")
    if place is not None:
        _expect(found, place.is_available, True, "{!r}: place takes turns", program)
    for turn in (*program.held.values(), *program.forwarded.values()):
        _expect(found, turn.id in cluster.turn_by_id, True, "{!r}: turn {} known", program, turn.id)
    if status is Status.YIELDING:
        runs = any(turn.backend is place for turn in program.forwarded.values())
        _expect(found, runs, True, "{!r}: has a running turn", program)


def _check_queue(cluster: Cluster, found: list[str]) -> None:
    queue = cluster.queue
    held = [turn for turn in cluster.turn_by_id.values() if turn.status is TurnStatus.HELD]
    _expect(found, queue.turn_count, len(held), "held turns")
    lines: dict[LineKey, set[int]] = {}
    for waiter in queue.waiters.values():
        _expect(found, bool(waiter.turns), True, "{} has turns", waiter)
        asking = [turn for turn in waiter.turns.values() if turn.asks]
        served = [turn for turn in asking if turn.serving.backends]
        turn = (served or asking or list(waiter.turns.values()))[0]
        _expect(found, waiter.turn, turn, "first turn of {}", waiter)
        key = queue.line_for(turn) if turn.asks and not waiter.is_urgent else None
        _expect(found, waiter.line, key, "line of {}", waiter)
        if key is not None:
            lines.setdefault(key, set()).add(id(waiter))
        need_tokens = turn.need_tokens if waiter.program is None else _need_tokens(waiter.program)
        _expect(found, waiter.need_tokens, need_tokens, "need of {}", waiter)
    have = {key: {id(waiter) for waiter in line} for key, line in queue.lines.items()}
    _expect(found, have, lines, "lines of the queue")
    served_lines = {id(line) for line in queue.lines.values() if line[0].turn.serving.backends}
    _expect(found, {id(line) for line in queue.open_lines()}, served_lines, "open lines")
    for line in queue.lines.values():
        keys = [waiter.order for waiter in line]
        _expect(found, keys, sorted(keys), "line sorted")
    mixed = {key for key, waiter in queue.waiters.items() if len({turn.model for turn in waiter.turns.values()}) > 1}
    _expect(found, mixed <= set(queue.mixed) <= set(queue.waiters), True, "waiters of several models")
    beside = {turn.id for turn in held if turn.waits_alone and turn.program is not None}
    _expect(found, set(queue.beside), beside, "turns beside their program's place")


def _need_tokens(program: Program) -> int:
    if not program.held and not program.forwarded:
        return program.kept_tokens
    need = {branch: branch.kept_tokens for branch in program.branches.values()}
    for turn in (*program.held.values(), *program.forwarded.values()):
        if not turn.waits_alone:
            need[turn.branch] = max(need.get(turn.branch, 0), turn.need_tokens)
    return sum(need.values())


def _check_backend(cluster: Cluster, backend: Backend, branches: list[Branch], found: list[str]) -> None:
    charges: list[Charge] = []
    holders: dict[PrefixKey, int] = {}
    for branch in branches:
        charge = branch.charge_on(backend)
        charged = 0
        if charge is not None:
            charges.append(charge)
            charged = charge.bare_tokens + _prefix_tokens(cluster, charge.prefixes)
            for key in charge.prefixes:
                holders[key] = holders.get(key, 0) + 1
        wanted = _recount(branch, backend)
        _expect(found, charged, wanted, "charge of branch {!r} on {}", branch.id, backend.id)
    own_tokens, guest_tokens = _check_charges(cluster, backend, charges, holders, found)
    _expect(found, backend.guest_tokens, guest_tokens, "guest tokens on {}", backend.id)
    have = {key: len(prefix.holders) for key, prefix in backend.prefixes.items()}
    _expect(found, have, holders, "prefixes on {}", backend.id)
    shared_tokens = _prefix_tokens(cluster, [key for key, count in holders.items() if count > 1])
    _expect(found, backend.shared_tokens, shared_tokens, "shared tokens on {}", backend.id)
    saved_tokens = sum([_prefix_tokens(cluster, (key,)) * (count - 1) for key, count in holders.items()])
    _expect(found, backend.saved_tokens, saved_tokens, "saved tokens on {}", backend.id)
    accounted_tokens = shared_tokens + guest_tokens + sum(own_tokens.values())
    _expect(found, backend.accounted_tokens, accounted_tokens, "accounted tokens on {}", backend.id)
    placed = [program for program in cluster.program_by_id.values() if program.place is backend]
    _check_placed(cluster, backend, placed, own_tokens, found)
    running = {turn.id for turn in cluster.turn_by_id.values() if turn.backend is backend}
    _expect(found, backend.forwarded.keys(), running, "turns on {}", backend.id)
    if not any(waiter.is_urgent for waiter in cluster.queue.waiters.values()):
        _expect(found, backend.reserved_tokens, 0, "reserved tokens on {} with no urgent turn", backend.id)


def _check_charges(
    cluster: Cluster, backend: Backend, charges: list[Charge], holders: dict[PrefixKey, int], found: list[str]
) -> tuple[dict[ProgramId, int], int]:
    """What the charges come to for each program that is placed there, and for all others together."""
    own_tokens: dict[ProgramId, int] = {}
    guest_tokens = 0
    for charge in charges:
        branch = charge.branch
        alone = [key for key in charge.prefixes if holders[key] == 1]
        recounted_tokens = charge.bare_tokens + _prefix_tokens(cluster, alone)
        _expect(found, charge.own_tokens, recounted_tokens, "own tokens of branch {!r}", branch.id)
        program = branch.program
        if program is not None and program.place is backend:
            own_tokens[program.id] = own_tokens.get(program.id, 0) + recounted_tokens
        else:
            guest_tokens += recounted_tokens
        prompts = sorted([turn.prompt_tokens for turn in branch.forwarded.values() if turn.backend is backend])
        _expect(found, charge.prompts, prompts, "prompts of branch {!r} on {}", branch.id, backend.id)
    return own_tokens, guest_tokens


def _check_placed(
    cluster: Cluster, backend: Backend, placed: list[Program], own_tokens: dict[ProgramId, int], found: list[str]
) -> None:
    for program in placed:
        _expect(found, program.own_tokens, own_tokens.get(program.id, 0), "own tokens of {!r}", program.id)
    _expect(found, backend.program_count, len(placed), "programs on {}", backend.id)
    for group in backend.groups:
        members = [program for program in placed if program.standing is group.standing]
        if members or group.by_size or group.by_time or group.tokens:
            _check_group(backend, group, members, found)
    paused = [program for program in cluster.paused_by_id.values() if program.origin == backend.id]
    have_paused = (backend.paused_count, backend.paused_tokens)
    recounted_paused = (len(paused), sum([program.kept_tokens for program in paused]))
    _expect(found, have_paused, recounted_paused, "paused programs of {}", backend.id)
    for half_life_seconds, decay in backend.acting.decays.items():
        recounted = sum(
            program.own_tokens * 2.0 ** -((cluster.now - program.acting_since) / half_life_seconds)
            for program in placed
            if program.standing is Standing.ACTING
        )
        if not isclose(decay.tokens(cluster.now), recounted, rel_tol=1e-6, abs_tol=1e-3):
            found.append(f"decayed tokens on {backend.id} are {decay.tokens(cluster.now)}, not {recounted}")


def _check_group(backend: Backend, group: Group, members: list[Program], found: list[str]) -> None:
    ids = {program.id for program in members}
    names = (group.standing, backend.id)
    _expect(found, {program.id for _, _, program in group.by_size}, ids, "{0.value} programs on {1}", *names)
    _expect(found, group.by_time.keys(), ids, "{0.value} programs on {1} by time", *names)
    keys = [(tokens, sequence) for tokens, sequence, _ in group.by_size]
    wanted = sorted([(program.own_tokens, program.sequence) for program in members])
    _expect(found, keys, wanted, "{0.value} programs on {1} sorted", *names)
    total = sum([program.own_tokens for program in members])
    _expect(found, group.tokens, total, "{0.value} tokens on {1}", *names)


def _recount(branch: Branch, backend: Backend) -> int:
    """The rule of the ledger, from its sources."""
    prompt_tokens = output_tokens = 0
    for turn in branch.forwarded.values():
        if turn.backend is backend:
            prompt_tokens = max(prompt_tokens, turn.prompt_tokens)
            output_tokens += turn.output_tokens
    running_tokens = prompt_tokens + output_tokens
    is_home = branch.program is not None and branch.program.place is backend
    return max(running_tokens, branch.kept_tokens) if is_home else running_tokens


def _prefix_tokens(cluster: Cluster, keys: Sequence[PrefixKey]) -> int:
    return sum([cluster.ledger.prefixes[key].tokens for key in keys]) if keys else 0


def _check_prefixes(cluster: Cluster, branches: list[Branch], found: list[str]) -> None:
    open_turns: dict[int, int] = {}
    for turn in cluster.turn_by_id.values():
        open_turns[id(turn.branch)] = open_turns.get(id(turn.branch), 0) + 1
    named: dict[PrefixKey, int] = {}
    for branch in branches:
        _expect(found, branch.open_turns, open_turns.get(id(branch), 0), "open turns of branch {!r}", branch.id)
        for key in branch.prefixes:
            named[key] = named.get(key, 0) + 1
    have = {key: known.branches for key, known in cluster.ledger.prefixes.items()}
    _expect(found, have, named, "known prefixes")
