"""The verbs of scheduling: hold, forward, admit, pause, yield, move, forget; each leaves the books balanced.

Nothing here decides. A verb changes the cluster, and appends the commands and notices that follow from it.
"""

from __future__ import annotations

from itertools import islice

from attrs import define, field
from sortedcontainers import SortedList

from thunderagent.core.backend import Backend
from thunderagent.core.cluster import Cluster
from thunderagent.core.commands import (
    Command,
    Forward,
    HoldReason,
    PauseReason,
    ProgramAdmitted,
    ProgramMoved,
    ProgramPaused,
    ProgramYielding,
    Refuse,
    RefuseCode,
    TurnHeld,
)
from thunderagent.core.events import Prefix
from thunderagent.core.ids import BranchId
from thunderagent.core.learning import learn_absence
from thunderagent.core.program import Branch, Program, Status
from thunderagent.core.queue import Waiter
from thunderagent.core.settings import OnHoldLimit, SchedulerSettings
from thunderagent.core.turn import Turn, TurnStatus, with_turn, without_turn

__all__ = ["Placement"]

_LOOK_AT = 16
"""Conversations of a program that are looked at when a turn of it arrives, whether they are to be forgotten."""


@define(eq=False, repr=False)
class Placement:
    """Carries out what was decided. ``commands`` collects what the driver is to do and to know."""

    cluster: Cluster
    settings: SchedulerSettings
    on_hold_limit: OnHoldLimit
    """The operator's choice, or the policy's where there is none."""
    commands: list[Command] = field(factory=list)
    _deadlines: SortedList = field(factory=SortedList)
    """``Turn.due`` of every held turn that has one."""
    due_at: float | None = None
    """When the next held turn is due; None if none is."""

    def take_commands(self) -> list[Command]:
        """What was collected; nothing is, from then on."""
        taken, self.commands = self.commands, []
        return taken

    # Turns

    def hold(self, turn: Turn, reason: HoldReason) -> None:
        """Let the turn wait; its age is that of its program's wait, so that trying again loses nothing."""
        cluster, program = self.cluster, turn.program
        if turn.waiting_since is None:
            turn.waiting_since = cluster.now
        since = turn.waiting_since
        if program is not None and not turn.waits_alone:
            if program.waiting_since is not None:
                since = min(since, program.waiting_since)
            program.waiting_since = turn.asking_since = since
        is_first, turn.hold_reason = turn.hold_reason is None, reason
        if program is not None:
            program.held = with_turn(program.held, turn)
            if not turn.waits_alone:
                turn.branch.hold(turn)
            self.note_activity(program)
        cluster.queue.add(turn, since)
        if self.settings.max_hold_seconds > 0:
            # A turn is refused for its own wait only: its program's former ones would have every retry refused.
            refuses = self.on_hold_limit is OnHoldLimit.REFUSE
            limit_since = turn.waiting_since if refuses else since
            turn.deadline_at = limit_since + self.settings.max_hold_seconds
            self._schedule(turn)
        if is_first:
            self.commands.append(TurnHeld(turn.id, turn.program_id, reason, turn.deadline_at))

    @staticmethod
    def resume_wait(turn: Turn) -> None:
        """A forward of the turn failed: its program asks again, and has asked all along."""
        program, since = turn.program, turn.asking_since
        if program is not None and since is not None and not turn.waits_alone:
            program.waiting_since = since if program.waiting_since is None else min(since, program.waiting_since)

    def retry_later(self, turn: Turn) -> None:
        """Have a held turn offered again after a while to the backends that it has tried."""
        turn.retry_at = self.cluster.now + self.settings.retry_seconds
        self._schedule(turn)

    def expire(self, waiter: Waiter) -> None:
        """Have the hold limit of a waiter's turns looked at again, at the next tick, which is due now."""
        for turn in waiter.turns.values():
            turn.deadline_at = self.cluster.now
            self._schedule(turn)

    def unhold(self, turn: Turn) -> None:
        """Take the turn out of the queue, to be forwarded, placed afresh or forgotten."""
        program = turn.program
        if program is not None:
            program.held = without_turn(program.held, turn)
            program.asked_until = self.cluster.now
            if not turn.waits_alone:
                turn.branch.unhold(turn)
        self.cluster.queue.remove(turn)
        turn.deadline_at = turn.retry_at = None
        self._schedule(turn)

    def forward(self, turn: Turn, backend: Backend) -> None:
        """Send the turn, which is not in the queue, to the backend."""
        turn.hold_reason = None
        self.cluster.ledger.start(turn, backend, self.cluster.now)
        program = turn.program
        if program is not None:
            if program.held:
                self.cluster.queue.refresh(program)
            elif program.place is backend:
                program.waiting_since = None
            self.leave_idle(program)
        self.commands.append(Forward(turn.id, backend.id))

    def refuse(self, turn: Turn, code: RefuseCode, message: str, retry_after_seconds: float | None = None) -> None:
        """Turn the turn, which is not in the queue, away."""
        self.end(turn)
        self.commands.append(Refuse(turn.id, code, message, retry_after_seconds))

    def end(self, turn: Turn) -> None:
        """Forget a turn that neither waits nor runs."""
        turn.status = TurnStatus.FINISHED
        del self.cluster.turn_by_id[turn.id]
        program, branch = turn.program, turn.branch
        branch.open_turns -= 1
        if program is None or program.status is Status.RELEASED:
            if branch.open_turns == 0:
                self._let_go(branch)
            return
        if branch.open_turns == 0:
            branch.used_at = self.cluster.now
            if len(program.branches) > 1:
                program.branches[branch.id] = program.branches.pop(branch.id)
        self.note_activity(program)

    def _let_go(self, branch: Branch) -> None:
        """Forget the conversation of a one-off turn or of a released program. The two refer to each other, and what
        is left in a cycle stays in memory until a pass of the collector that looks at everything (``garbage.py``)."""
        self.cluster.ledger.forget_branch(branch)
        if branch.program is not None:
            del branch.program.branches[branch.id]

    # Programs

    def admit(self, program: Program, backend: Backend) -> None:
        """Give a program its place, or move it there; its held turns stay for the caller to forward."""
        cluster, former = self.cluster, program.place
        if former is backend:
            if program.status is Status.YIELDING:
                program.become(Status.ADMITTED)
                backend.file(program)
            return
        if former is not None:
            cluster.ledger.unplace(program)
            if program.status is Status.YIELDING:
                program.become(Status.ADMITTED)
            self.keep_served(program, backend)
            cluster.ledger.place(program, backend)
            cluster.queue.refresh(program)
            program.last_place, program.last_life = backend, backend.cache_life
            self.commands.append(ProgramMoved(program.id, former.id, backend.id))
            return
        resumed, origin = program.status is Status.PAUSED, program.origin
        self._forget_pause(program)
        program.become(Status.ADMITTED)
        self.keep_served(program, backend)
        cluster.ledger.place(program, backend)
        cluster.queue.refresh(program)
        since = program.waiting_since
        waited_seconds = 0.0 if since is None else cluster.now - since
        program.waiting_since = None
        program.last_place, program.last_life = backend, backend.cache_life
        program.admitted_at, program.service_seconds, program.turns_served = cluster.now, 0.0, 0
        self.commands.append(ProgramAdmitted(program.id, backend.id, waited_seconds, resumed))
        if origin is not None and origin != backend.id:
            self.commands.append(ProgramMoved(program.id, origin, backend.id))

    def pause(self, program: Program, reason: PauseReason) -> None:
        """Take the program's place away. Its running turns finish as guests; its held turns go on waiting."""
        backend = self.cluster.ledger.unplace(program)
        if program.is_idle:
            for branch in program.branches.values():
                learn_absence(branch, self.cluster)
        program.become(Status.PAUSED)
        if reason is PauseReason.BACKEND_LOST:
            program.last_place = None
        self.cluster.paused_by_id[program.id] = program
        self._count_paused(program, 1)
        if program.id in self.cluster.idle:
            self._note_paused_idle(program)
        waiter = self.cluster.queue.of_program(program)
        if waiter is not None and program.waiting_since is None:
            if reason is not PauseReason.BACKEND_LOST:
                # Turns that waited at its place did not ask for one: being old, they would have it back at once.
                self.cluster.queue.restart(program, self.cluster.now)
            program.waiting_since = waiter.since
        for turn in program.held.values():
            if turn.hold_reason is HoldReason.YIELDING:
                turn.hold_reason = HoldReason.POLICY
        self.cluster.queue.regroup(program)
        self.commands.append(ProgramPaused(program.id, backend.id, reason))

    def yield_place(self, program: Program, reason: PauseReason) -> None:
        """Have the program give its place up at its next turn boundary, which is now if none of its turns runs."""
        backend = program.place
        assert backend is not None
        if not self.runs_at_place(program):
            self.pause(program, reason)
        elif program.status is not Status.YIELDING:
            program.become(Status.YIELDING)
            program.yield_reason = reason
            backend.file(program)
            for turn in program.held.values():
                if turn.hold_reason is HoldReason.POLICY and not turn.waits_alone:
                    turn.hold_reason = HoldReason.YIELDING
            self.cluster.queue.regroup(program)
            self.commands.append(ProgramYielding(program.id, backend.id))

    @staticmethod
    def runs_at_place(program: Program) -> bool:
        """Whether a turn of the program runs on its place."""
        return any(turn.backend is program.place for turn in program.forwarded.values())

    def forget_program(self, program: Program) -> None:
        """Free everything that the program took; its running turns finish as guests. It has no held turns."""
        cluster = self.cluster
        if program.place is not None:
            cluster.ledger.unplace(program)
        self._forget_pause(program)
        program.become(Status.RELEASED)
        cluster.idle.pop(program.id, None)
        del cluster.program_by_id[program.id]
        for branch in list(program.branches.values()):
            learn_absence(branch, cluster)
            branch.kept_tokens = 0
            if branch.open_turns == 0:
                self._let_go(branch)

    def branch_of(self, program: Program | None, branch_id: BranchId, prefixes: tuple[Prefix, ...]) -> Branch:
        """The conversation that an arriving turn continues or begins; ``prefixes`` count where it begins one."""
        branch = None
        if program is not None:
            branch = program.branches.get(branch_id)
            if len(program.branches) > (branch is not None):
                self._forget_old_branches(program, branch_id)
        if branch is None:
            branch = Branch(branch_id, program)
            self.cluster.ledger.name_prefixes(branch, prefixes)
            if program is not None:
                program.branches[branch.id] = branch
        branch.used_at = self.cluster.now
        return branch

    def _forget_old_branches(self, program: Program, arriving: BranchId) -> None:
        """A conversation that ended inside a program (a sub-agent's, one from before a compaction) must not
        count for ever; its end is not announced, so age and number bound it.

        O(1) for each that is forgotten: a busy one that stands before the idle ones goes to the end, where it is put
        anyway when it becomes idle, and no more than ``_LOOK_AT`` are looked at for one arrival.
        """
        branches, settings = program.branches, self.settings
        for branch in list(islice(branches.values(), _LOOK_AT)):
            if branch.open_turns or branch.id == arriving:
                branches[branch.id] = branches.pop(branch.id)
                continue
            is_old = 0 < settings.branch_ttl_seconds <= self.cluster.now - branch.used_at
            if not is_old and len(branches) + (arriving not in branches) <= settings.max_branches:
                return
            self.forget_branch(program, branch)

    def forget_branch(self, program: Program, branch: Branch) -> None:
        """Forget a conversation that has neither running nor held turns."""
        self.leave_out(program, branch)
        self.cluster.ledger.forget_branch(branch)
        del program.branches[branch.id]
        self.cluster.queue.refresh(program)

    def leave_out(self, program: Program, branch: Branch) -> None:
        """No longer count what an idle conversation left: it is not expected back in time."""
        learn_absence(branch, self.cluster)
        self.keep(branch, 0)
        branch.settle_need()
        if program.place is not None:
            self.cluster.ledger.settle(branch, program.place)
            program.place.file(program)

    def note_activity(self, program: Program) -> None:
        """Keep the order of idle programs: at the end when it has just become idle, out while it is not."""
        if not program.is_idle:
            self.leave_idle(program)
        elif program.id not in self.cluster.idle:
            program.idle_since = self.cluster.now
            self.cluster.idle[program.id] = program
            if program.status is Status.PAUSED:
                self._note_paused_idle(program)

    def leave_idle(self, program: Program) -> None:
        """Strike a program off the list of the idle, if it is on it."""
        if self.cluster.idle.pop(program.id, None) is not None and program.status is Status.PAUSED:
            self._forget_paused_idle(program)

    def _note_paused_idle(self, program: Program) -> None:
        program.size_entry = (program.total_tokens, program.sequence, program)
        self.cluster.paused_idle.add(program.size_entry)

    def _forget_pause(self, program: Program) -> None:
        """Strike a program off the lists of the paused, if it is on them."""
        if self.cluster.paused_by_id.pop(program.id, None) is None:
            return
        self._count_paused(program, -1)
        if program.id in self.cluster.idle:
            self._forget_paused_idle(program)

    def _forget_paused_idle(self, program: Program) -> None:
        self.cluster.paused_idle.remove(program.size_entry)
        program.size_entry = None

    @staticmethod
    def _count_paused(program: Program, count: int) -> None:
        """Count a paused program where its prefix may lie."""
        if program.last_place is not None and program.origin is not None:
            backend = program.last_place
            backend.paused_count += count
            backend.paused_tokens += count * program.total_tokens

    def keep(self, branch: Branch, tokens: int) -> None:
        """Write down what the last finished turn of a conversation left; its charges and its need are settled by the
        caller."""
        program, change_tokens = branch.program, tokens - branch.kept_tokens
        branch.kept_tokens = tokens
        assert program is not None
        if program.status is Status.PAUSED:
            self._count_paused(program, -1)
        program.total_tokens += change_tokens
        if program.status is Status.PAUSED:
            self._count_paused(program, 1)

    def keep_served(self, program: Program, backend: Backend) -> None:
        """Nothing is kept at the program's place of conversations whose model is not served there; their charges are
        settled by the caller."""
        for branch in program.branches.values():
            if branch.kept_tokens and not backend.serves(branch.model):
                self.keep(branch, 0)
                branch.settle_need()

    # Deadlines

    def next_due(self) -> Turn | None:
        """A held turn that is due now, if any; what is done about it must move its deadline."""
        if self.due_at is None or self.due_at > self.cluster.now:
            return None
        return self.cluster.turn_by_id[self._deadlines[0][1]]

    def settle_due(self, turn: Turn) -> bool:
        """Take the deadlines of a turn that are due off; whether it is to be tried again, rather than too old."""
        now = self.cluster.now
        is_retry = turn.retry_at is not None and turn.retry_at <= now
        if is_retry:
            turn.retry_at = None
        else:
            turn.deadline_at = None
        self._schedule(turn)
        return is_retry

    def _schedule(self, turn: Turn) -> None:
        """Keep the turn's one entry among the deadlines up to date. O(log held turns)."""
        times = [at for at in (turn.deadline_at, turn.retry_at) if at is not None]
        due = (min(times), turn.id) if times else None
        if due != turn.due:
            if turn.due is not None:
                self._deadlines.remove(turn.due)
            if due is not None:
                self._deadlines.add(due)
            turn.due = due
            self.due_at = self._deadlines[0][0] if self._deadlines else None
