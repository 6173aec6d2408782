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
from thunderagent.core.estimate import Ratio
from thunderagent.core.events import Prefix
from thunderagent.core.ids import PrefixKey
from thunderagent.core.program import Branch, Program
from thunderagent.core.turn import Turn, TurnStatus

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
        """Fix which shared beginnings a new branch stands on."""
        for prefix in prefixes:
            known = self.prefixes.get(prefix.key)
            if known is None:
                known = self.prefixes[prefix.key] = _KnownPrefix(self.ratio.tokens(prefix.size_bytes))
            known.branches += 1
        branch.prefixes = tuple(prefix.key for prefix in prefixes)

    def forget_branch(self, branch: Branch) -> None:
        """Let go of the prefixes of a branch that has no charge left."""
        for key in branch.prefixes:
            known = self.prefixes[key]
            known.branches -= 1
            if known.branches == 0:
                del self.prefixes[key]
        branch.prefixes = ()

    def start(self, turn: Turn, backend: Backend, now: float) -> None:
        """A turn is forwarded: it and its program reason from now on."""
        turn.status, turn.backend, turn.forwarded_at = TurnStatus.FORWARDED, backend, now
        turn.branch.forwarded[turn.id] = backend.forwarded[turn.id] = turn
        program = turn.program
        if program is not None:
            if program.place is not None:
                program.place.discard(program)
            program.forwarded[turn.id] = turn
            if program.place is not None:
                program.place.insert(program)
        self.settle(turn.branch, backend)

    def stop(self, turn: Turn, status: TurnStatus, now: float) -> Backend:
        """A forwarded turn ended or failed before its first byte; returns where it ran."""
        backend, program = turn.backend, turn.program
        assert backend is not None
        assert turn.forwarded_at is not None
        if program is not None:
            if program.place is not None:
                program.place.discard(program)
            del program.forwarded[turn.id]
            if program.place is not None:
                program.place.insert(program)
            if program.place is backend:
                program.service_seconds += now - turn.forwarded_at
        del turn.branch.forwarded[turn.id]
        del backend.forwarded[turn.id]
        turn.status, turn.backend, turn.forwarded_at = status, None, None
        self.settle(turn.branch, backend)
        return backend

    def place(self, program: Program, backend: Backend) -> None:
        """Make ``backend`` the place of a program that has none; what it runs there already is now its own."""
        for branch in program.branches.values():
            charge = branch.charges.get(backend)
            if charge is not None:
                backend.guest_tokens -= charge.own_tokens
                program.own_tokens += charge.own_tokens
        program.place = backend
        backend.insert(program)
        for branch in program.branches.values():
            self.settle(branch, backend)

    def unplace(self, program: Program) -> Backend:
        """Take the program's place away; turns that run there go on as guests. Returns the former place."""
        backend = program.place
        assert backend is not None
        backend.discard(program)
        program.place = None
        backend.guest_tokens += program.own_tokens
        program.own_tokens = 0
        for branch in program.branches.values():
            self.settle(branch, backend)
        return backend

    def settle(self, branch: Branch, backend: Backend) -> None:
        """Make the branch's charge on the backend what the rule says now."""
        program = branch.program
        home = program is not None and program.place is backend
        wanted_tokens = self._wanted_tokens(branch, backend, home)
        charge = branch.charges.get(backend)
        if charge is None:
            if wanted_tokens == 0:
                return
            charge = branch.charges[backend] = Charge(branch)
        bare_tokens, prefixes = self._split(branch, wanted_tokens)
        taken = [key for key in prefixes if key not in charge.prefixes]
        dropped = [key for key in charge.prefixes if key not in prefixes]
        changed: list[Charge | None] = [charge]
        changed += [backend.hold_prefix(key, self.prefixes[key].tokens, charge) for key in taken]
        changed += [backend.drop_prefix(key, charge) for key in dropped]
        charge.bare_tokens, charge.prefixes = bare_tokens, prefixes
        for entry in changed:
            if entry is not None:
                self._settle_own(entry, backend)
        if wanted_tokens == 0:
            del branch.charges[backend]

    @staticmethod
    def _settle_own(charge: Charge, backend: Backend) -> None:
        """A prefix counts as its holder's own until somebody shares it."""
        own_tokens = charge.bare_tokens
        for key in charge.prefixes:
            held = backend.prefixes[key]
            if not held.is_shared:
                own_tokens += held.tokens
        change_tokens = own_tokens - charge.own_tokens
        if change_tokens == 0:
            return
        charge.own_tokens = own_tokens
        program = charge.branch.program
        if program is not None and program.place is backend:
            backend.resize(program, change_tokens)
        else:
            backend.guest_tokens += change_tokens

    def added_tokens(self, turn: Turn, backend: Backend) -> int:
        """Tokens that forwarding the turn there, with its program placed there, would add to the account.

        O(branches of the program).
        """
        program, branch = turn.program, turn.branch
        is_home = program is not None and program.place is backend
        if program is None or turn.waits_alone or is_home:
            return self._brought_tokens({branch: self._wanted_tokens(branch, backend, is_home, turn)}, backend)
        return self._brought_tokens(program.need_by_branch(turn), backend)

    def added_tokens_of(self, program: Program, backend: Backend) -> int:
        """Tokens that placing the program there would add to the account."""
        return self._brought_tokens(program.need_by_branch(), backend)

    def footprint_tokens(self, program: Program) -> int:
        """What the program would take alone on a backend: its own tokens, and in full those that it shares."""
        place = program.place
        if place is None:
            return program.need_tokens
        charges = [
            charge for branch in program.branches.values() if (charge := branch.charges.get(place)) is not None
        ]
        keys = {key for charge in charges for key in charge.prefixes}
        return sum(charge.bare_tokens for charge in charges) + sum(self.prefixes[key].tokens for key in keys)

    def _brought_tokens(self, wanted: dict[Branch, int], backend: Backend) -> int:
        """What charging these branches so much there would add: not what they are charged there already, nor the
        prefixes that are there or that two of them bring."""
        bare_tokens = 0
        keys: set[PrefixKey] = set()
        for branch, wanted_tokens in wanted.items():
            wanted_bare_tokens, prefixes = self._split(branch, wanted_tokens)
            charge = branch.charges.get(backend)
            bare_tokens += wanted_bare_tokens - (0 if charge is None else charge.bare_tokens)
            keys.update(key for key in prefixes if key not in backend.prefixes)
        return max(0, bare_tokens + sum(self.prefixes[key].tokens for key in keys))

    @staticmethod
    def _wanted_tokens(branch: Branch, backend: Backend, home: bool, joining: Turn | None = None) -> int:
        prompt_tokens = 0 if joining is None else joining.prompt_tokens
        output_tokens = 0 if joining is None else joining.output_tokens
        for turn in branch.forwarded.values():
            if turn.backend is backend:
                prompt_tokens = max(prompt_tokens, turn.prompt_tokens)
                output_tokens += turn.output_tokens
        running_tokens = prompt_tokens + output_tokens
        return max(running_tokens, branch.kept_tokens) if home else running_tokens

    def _split(self, branch: Branch, wanted_tokens: int) -> tuple[int, tuple[PrefixKey, ...]]:
        """Bare tokens, and the prefixes from the start that fit into what is wanted."""
        bare_tokens = wanted_tokens
        prefixes: list[PrefixKey] = []
        for key in branch.prefixes:
            tokens = self.prefixes[key].tokens
            if tokens > bare_tokens:
                break
            bare_tokens -= tokens
            prefixes.append(key)
        return bare_tokens, tuple(prefixes)
