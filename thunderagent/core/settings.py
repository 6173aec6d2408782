"""What an operator may set about scheduling, whatever the policy."""

from __future__ import annotations

from enum import Enum

from attrs import frozen

__all__ = ["OnHoldLimit", "SchedulerSettings"]


class OnHoldLimit(Enum):
    """What happens to a turn that was held for ``max_hold_seconds``."""

    HEAD = "head"
    """It goes to the head, and the program served for longest since its admission makes room at its next
    boundary. Never overcommits. (A turn whose program has its place already goes there.)"""
    FORCE = "force"
    """It is forwarded without regard to capacity (the published way)."""
    REFUSE = "refuse"
    """It is answered 503 with Retry-After."""


@frozen
class SchedulerSettings:
    """Limits of the scheduler; times in seconds of its clock."""

    max_hold_seconds: float = 1800.0
    """0: no limit."""
    on_hold_limit: OnHoldLimit | None = None
    """None: as the policy has it, which is ``head`` unless it says otherwise."""
    program_ttl_seconds: float = 3600.0
    """Idle programs are forgotten after this; 0: never."""
    branch_ttl_seconds: float = 600.0
    """A conversation of a program that took no turn for so long, while others did, no longer counts; 0: never."""
    max_branches: int = 64
    """Conversations remembered per program; past it the one unused for longest is forgotten."""
    max_held_turns: int = 16_384
    max_programs: int = 100_000
    max_failed_sends: int = 1
    """Backends that may break off a turn before its first byte and have it tried elsewhere: a request that
    kills its engine must not be handed to every other one."""
    resend_seconds: float = 120.0
    """A client that left while its turn was held, and sends it again within this, keeps its place in the queue."""
    retry_seconds: float = 1.0
    """Wait before a turn that no backend would take is offered again."""
