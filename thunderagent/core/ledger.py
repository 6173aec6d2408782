"""Who is charged what, where: every token taken is given back by the same rule that took it.

A charge belongs to a branch on a backend. At its program's place a branch is charged what its last finished
turn left, or what its running turns need where that is more; anywhere else only what runs there. ``settle``
recomputes one charge from these facts and applies the difference, so a charge cannot drift from its reason.
Turns of one branch that run at once continue the same conversation: the longest prompt counts once, every
output by itself. A beginning that several branches share counts once per backend: as its holder's own tokens
while there is one, as the backend's shared tokens from the second one on.
"""

from __future__ import annotations

from attrs import define, field

from thunderagent.core.backend import Backend, Charge
from thunderagent.core.demand import Demand
from thunderagent.core.estimate import Ratio
from thunderagent.core.events import Prefix
from thunderagent.core.ids import PrefixKey
from thunderagent.core.program import Branch, Program
from thunderagent.core.sizes import with_size, without_size
from thunderagent.core.turn import Turn, TurnStatus, with_turn, without_turn

__all__ = ["Ledger"]


@define(eq=False)
class _KnownPrefix:
    """Tokens of a shared prefix, fixed as long as a branch names it, so that all charges agree on them."""

    tokens: int
    branches: int = 0


@define(eq=False, repr=False)
class Ledger:
    """The charges of all branches on all backends."""

    ratio: Ratio = field(factory=Ratio)
    prefixes: dict[PrefixKey, _KnownPrefix] = field(factory=dict)

    def name_prefixes(self, branch: Branch, prefixes: tuple[Prefix, ...]) -> None:
        """Fix which shared beginnings a new branch stands on; one that is named twice counts once."""
        keys: list[PrefixKey] = []
        for prefix in prefixes:
            if prefix.key in keys:
                continue
            keys.append(prefix.key)
            known = self.prefixes.get(prefix.key)
            if known is None:
                known = self.prefixes[prefix.key] = _KnownPrefix(self.ratio.tokens(prefix.size_bytes))
            known.branches += 1
            branch.prefix_tokens += known.tokens
        branch.prefixes = tuple(keys)

    def forget_branch(self, branch: Branch) -> None:
        """Let go of the prefixes of a branch that has no charge left."""
        for key in branch.prefixes:
            known = self.prefixes[key]
            known.branches -= 1
            if known.branches == 0:
                del self.prefixes[key]
        branch.prefixes, branch.prefix_tokens = (), 0

    def start(self, turn: Turn, backend: Backend, now: float) -> None:
        """A turn is forwarded: it and its program reason from now on."""
        turn.status, turn.backend, turn.forwarded_at = TurnStatus.FORWARDED, backend, now
        program, branch = turn.program, turn.branch
        history = branch.history
        turn.expected_tokens = history.cached_tokens(backend, turn.body_bytes)
        if turn.expected_tokens:
            turn.age_tokens = backend.residency.age_tokens(history.mark_tokens)
        backend.forwarded[turn.id] = turn
        branch.forwarded = with_turn(branch.forwarded, turn)
        charge = branch.charge_on(backend)
        if charge is None:
            charge = Charge(branch, backend)
            branch.charges.append(charge)
        charge.prompts = with_size(charge.prompts, turn.prompt_tokens)
        turn.counted_tokens = turn.output_tokens
        charge.output_tokens += turn.counted_tokens
        if program is None:
            self._settle_charge(charge, branch, backend)
            return
        if not turn.waits_alone:
            branch.running = with_size(branch.running, turn.prompt_tokens + turn.counted_tokens)
            branch.settle_need()
        program.forwarded = with_turn(program.forwarded, turn)
        self._settle_charge(charge, branch, backend)
        if program.place is not None:
            program.place.file(program)

    def grow(self, turn: Turn, output_tokens: int) -> None:
        """A running turn has that much output by now. Its charge is settled by the caller."""
        branch, backend, counted_tokens = turn.branch, turn.backend, turn.counted_tokens
        assert backend is not None
        turn.output_tokens = turn.counted_tokens = output_tokens
        charge = branch.charge_on(backend)
        assert charge is not None
        charge.output_tokens += output_tokens - counted_tokens
        if turn.program is not None and not turn.waits_alone:
            running = without_size(branch.running, turn.prompt_tokens + counted_tokens)
            branch.running = with_size(running, turn.prompt_tokens + output_tokens)
            branch.settle_need()

    def stop(self, turn: Turn, status: TurnStatus, now: float) -> Backend:
        """A forwarded turn ended or failed before its first byte; returns where it ran."""
        backend, program, branch = turn.backend, turn.program, turn.branch
        assert backend is not None
        assert turn.forwarded_at is not None
        seconds = now - turn.forwarded_at
        branch.forwarded = without_turn(branch.forwarded, turn)
        charge = branch.charge_on(backend)
        assert charge is not None
        charge.prompts = without_size(charge.prompts, turn.prompt_tokens)
        charge.output_tokens -= turn.counted_tokens
        del backend.forwarded[turn.id]
        turn.status, turn.backend, turn.forwarded_at = status, None, None
        if program is None:
            self._settle_charge(charge, branch, backend)
            return backend
        if not turn.waits_alone:
            branch.running = without_size(branch.running, turn.prompt_tokens + turn.counted_tokens)
        branch.settle_need()
        program.forwarded = without_turn(program.forwarded, turn)
        if not program.forwarded:
            program.acting_since = now
        self._settle_charge(charge, branch, backend)
        if program.place is not None:
            program.place.file(program)
            if program.place is backend:
                program.service_seconds += seconds
                program.turns_served += status is TurnStatus.FINISHED
        return backend

    def place(self, program: Program, backend: Backend) -> None:
        """Make ``backend`` the place of a program that has none; what it runs there already is now its own."""
        for branch in program.branches.values():
            charge = branch.charge_on(backend)
            if charge is not None:
                backend.guest_tokens -= charge.own_tokens
                program.own_tokens += charge.own_tokens
        program.place = backend
        for branch in program.branches.values():
            self.settle(branch, backend)
        backend.file(program)

    def unplace(self, program: Program) -> Backend:
        """Take the program's place away; turns that run there go on as guests. Returns the former place."""
        backend = program.place
        assert backend is not None
        backend.unfile(program)
        program.place = None
        backend.guest_tokens += program.own_tokens
        program.own_tokens = 0
        for branch in program.branches.values():
            self.settle(branch, backend)
        return backend

    def settle(self, branch: Branch, backend: Backend) -> None:
        """Make the branch's charge on the backend what the rule says now. The program is filed by the caller."""
        charge = branch.charge_on(backend)
        if charge is None:
            program = branch.program
            if program is None or program.place is not backend or branch.kept_tokens == 0:
                return
            charge = Charge(branch, backend)
            branch.charges.append(charge)
        self._settle_charge(charge, branch, backend)

    def _settle_charge(self, charge: Charge, branch: Branch, backend: Backend) -> None:
        """The same for the charge that it has there."""
        program = branch.program
        wanted_tokens = charge.prompts[-1] + charge.output_tokens if charge.prompts else 0
        if program is not None and program.place is backend and branch.kept_tokens > wanted_tokens:
            wanted_tokens = branch.kept_tokens
        if charge.prefixes is branch.prefixes and wanted_tokens > branch.prefix_tokens:
            bare_tokens = wanted_tokens - branch.prefix_tokens
            change_tokens, charge.bare_tokens = bare_tokens - charge.bare_tokens, bare_tokens
            if change_tokens:
                self._change_own(charge, change_tokens, backend)
        else:
            self._settle_prefixes(charge, wanted_tokens, backend)
        if wanted_tokens == 0:
            branch.charges.remove(charge)

    def _settle_prefixes(self, charge: Charge, wanted_tokens: int, backend: Backend) -> None:
        """The charge grows over, or shrinks below, the end of a prefix that others may share."""
        bare_tokens, prefixes = self.split(charge.branch, wanted_tokens)
        taken = [key for key in prefixes if key not in charge.prefixes]
        dropped = [key for key in charge.prefixes if key not in prefixes]
        others: list[Charge | None] = []
        others += [backend.hold_prefix(key, self.prefixes[key].tokens, charge) for key in taken]
        others += [backend.drop_prefix(key, charge) for key in dropped]
        charge.bare_tokens, charge.prefixes = bare_tokens, prefixes
        self._settle_own(charge, backend)
        for other in others:
            if other is not None and other is not charge:
                self._settle_own(other, backend)
                program = other.branch.program
                if program is not None and program.place is backend and program is not charge.branch.program:
                    backend.file(program)

    def _settle_own(self, charge: Charge, backend: Backend) -> None:
        """A prefix counts as its holder's own until somebody shares it."""
        own_tokens = charge.bare_tokens
        for key in charge.prefixes:
            held = backend.prefixes[key]
            if not held.is_shared:
                own_tokens += held.tokens
        if own_tokens != charge.own_tokens:
            self._change_own(charge, own_tokens - charge.own_tokens, backend)

    @staticmethod
    def _change_own(charge: Charge, change_tokens: int, backend: Backend) -> None:
        """Its own tokens are so many more: its program's, or the backend's guests'."""
        charge.own_tokens += change_tokens
        program = charge.branch.program
        if program is not None and program.place is backend:
            program.own_tokens += change_tokens
        else:
            backend.guest_tokens += change_tokens
        backend.charge(change_tokens)

    def added_tokens(self, turn: Turn, backend: Backend) -> int:
        """Tokens that forwarding the turn there, with its program placed there, would add to the account.

        O(branches of the program).
        """
        program = turn.program
        if program is not None and program.place is backend:
            return self._joining_tokens(turn, backend)
        return self.demand(turn).added_tokens(backend)

    def _joining_tokens(self, turn: Turn, backend: Backend) -> int:
        """Tokens that the turn's branch alone would be charged more on the backend if the turn ran there."""
        branch, program = turn.branch, turn.program
        charge = branch.charge_on(backend)
        prompts, output_tokens = ((), 0) if charge is None else (charge.prompts, charge.output_tokens)
        wanted_tokens = max((*prompts[-1:], turn.prompt_tokens)) + output_tokens + turn.output_tokens
        if program is not None and program.place is backend:
            wanted_tokens = max(wanted_tokens, branch.kept_tokens)
        return self._demand({branch: wanted_tokens}).added_tokens(backend)

    def demand(self, turn: Turn) -> Demand:
        """What the turn takes on a backend that is not its program's place: all that the program needs, or what
        it needs itself where it waits alone. O(branches of the program)."""
        program, branch = turn.program, turn.branch
        if program is None or turn.waits_alone:
            demand = self._demand({branch: turn.need_tokens})
            if branch.charges:
                demand.joining = {
                    charge.backend: self._joining_tokens(turn, charge.backend) for charge in branch.charges
                }
            return demand
        if len(program.branches) == 1:
            bare_tokens, keys = self.split(branch, max(branch.need_tokens, turn.need_tokens))
            sizes = tuple((key, self.prefixes[key].tokens) for key in keys)
            return Demand(bare_tokens, sizes, (branch,) if branch.charges else ())
        need = {entry: entry.need_tokens for entry in program.branches.values()}
        need[branch] = max(need.get(branch, 0), turn.need_tokens)
        return self._demand(need)

    def demand_of(self, program: Program) -> Demand:
        """What the program takes on a backend that is not its place."""
        return self._demand({branch: branch.need_tokens for branch in program.branches.values()})

    def _demand(self, wanted: dict[Branch, int]) -> Demand:
        bare_tokens = 0
        sizes: dict[PrefixKey, int] = {}
        for branch, wanted_tokens in wanted.items():
            branch_tokens, prefixes = self.split(branch, wanted_tokens)
            bare_tokens += branch_tokens
            for key in prefixes:
                sizes[key] = self.prefixes[key].tokens
        charged = tuple(branch for branch in wanted if branch.charges)
        return Demand(bare_tokens, tuple(sizes.items()), charged)

    def footprint_tokens(self, program: Program) -> int:
        """What the program would take alone on a backend: its own tokens, and in full those that it shares."""
        place = program.place
        if place is None:
            return program.need_tokens
        charges = [charge for branch in program.branches.values() if (charge := branch.charge_on(place)) is not None]
        keys = {key for charge in charges for key in charge.prefixes}
        return sum(charge.bare_tokens for charge in charges) + sum(self.prefixes[key].tokens for key in keys)

    def split(self, branch: Branch, wanted_tokens: int) -> tuple[int, tuple[PrefixKey, ...]]:
        """Bare tokens, and the prefixes from the start that fit into what is wanted."""
        if wanted_tokens >= branch.prefix_tokens:
            return wanted_tokens - branch.prefix_tokens, branch.prefixes
        bare_tokens = wanted_tokens
        prefixes: list[PrefixKey] = []
        for key in branch.prefixes:
            tokens = self.prefixes[key].tokens
            if tokens > bare_tokens:
                break
            bare_tokens -= tokens
            prefixes.append(key)
        return bare_tokens, tuple(prefixes)
