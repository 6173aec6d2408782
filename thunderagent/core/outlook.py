"""What waits today's load makes, and what keeping all of them below the hold limit takes.

Programs that need p times the KV capacity wait (p - 1) S where each has its place for S seconds; places that change
hands are prefilled anew, which takes a share L = (K/R) / S of the engines, K/R being the time to fill the cache with
prompts: so to keep every wait below H takes L = (p - 1) (K/R) / H.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from thunderagent.core.cluster import Cluster
from thunderagent.core.ids import PrefixKey
from thunderagent.core.policy import ASSUMED_REFILL_SECONDS, ROTATION_RATIO
from thunderagent.core.program import Branch
from thunderagent.core.settings import SchedulerSettings

__all__ = ["Outlook", "outlook"]


@frozen
class Outlook:
    """The state of the moment taken to last. None: not known, since a backend's capacity is not, or there is none."""

    pressure: float | None
    """p: tokens needed by the programs and turns that have a place or wait for one, over the capacity. A paused
    program without a held turn asks for nothing, and one that no backend is there for does not wait for room."""
    refill_seconds: float
    """K/R: the backends' mean, weighted by capacity."""
    hold_seconds: float | None
    """How long programs wait for a place where ``ROTATION_RATIO`` of the engines goes into changing places. 0 while
    nobody waits (a policy that holds nothing back has more placed than there is room for, and no waits), and where
    all would fit together but for reserves and for room that is split among backends."""
    rotation_ratio: float | None
    """What share of the engines it takes to keep ``max_hold_seconds``; above 1 no schedule can. 0 without a limit."""
    is_refill_known: bool = False
    """Whether the router knows of every backend how fast it prefills, which a streamed answer or its counters say;
    one of which it does not is taken to fill its cache in ``ASSUMED_REFILL_SECONDS``."""

    @property
    def keeps_limit(self) -> bool | None:
        """Whether the hold limit can be kept at the price that rotation may have. None: not known, since a capacity
        is not, or since there are waits and what they cost is assumed. Where there are none, and without a limit,
        there is nothing to be kept, however fast the engines are."""
        if self.rotation_ratio is None or not (self.is_refill_known or self.rotation_ratio == 0.0):
            return None
        return self.rotation_ratio <= ROTATION_RATIO


def outlook(cluster: Cluster, settings: SchedulerSettings) -> Outlook:
    """What is to be expected of the backends that take turns now.

    O(backends + conversations of those who wait), about 3 microseconds each: for now and then, not for each event.
    """
    backends, limit_seconds = cluster.backends, settings.max_hold_seconds
    weights = [(entry.capacity_tokens or 0, entry.expected_refill_seconds) for entry in backends]
    capacity_tokens = sum(tokens for tokens, _ in weights)
    is_refill_known = bool(backends) and all(entry.refill_seconds for entry in backends)
    refill_seconds = ASSUMED_REFILL_SECONDS
    if capacity_tokens:
        refill_seconds = sum(tokens * seconds for tokens, seconds in weights) / capacity_tokens
    if not capacity_tokens or any(entry.capacity_tokens is None for entry in backends):
        return Outlook(None, refill_seconds, None, None if limit_seconds else 0.0, is_refill_known)
    needs = _needs_of_waiting(cluster)
    needed_tokens = sum(entry.accounted_tokens for entry in backends) + _added_tokens(needs, cluster)
    pressure = needed_tokens / capacity_tokens
    excess_seconds = max(0.0, pressure - 1.0) * refill_seconds if needs else 0.0
    return Outlook(
        pressure=pressure,
        refill_seconds=refill_seconds,
        is_refill_known=is_refill_known,
        hold_seconds=excess_seconds / ROTATION_RATIO,
        rotation_ratio=excess_seconds / limit_seconds if limit_seconds else 0.0,
    )


def _needs_of_waiting(cluster: Cluster) -> dict[Branch, int]:
    """What the conversations of those who wait for room need resident, each in full."""
    needs: dict[Branch, int] = {}
    for waiter in cluster.queue.waiters.values():
        turn, program = waiter.turn, waiter.program
        if not turn.serving.backends:
            continue
        if program is None:
            needs[turn.branch] = max(turn.need_tokens, needs.get(turn.branch, 0))
            continue
        for branch in program.branches.values():
            needs[branch] = max(branch.need_tokens, needs.get(branch, 0))
    return needs


def _added_tokens(needs: Mapping[Branch, int], cluster: Cluster) -> int:
    """What of it is not accounted: all of it for a program without a place; what came to it since for one that waits
    at its place, or whose last turns run as guests. A beginning that is on a backend, or that others who wait stand
    on too, counts no second time."""
    backends, split, known = cluster.backends, cluster.ledger.split, cluster.ledger.prefixes
    added_tokens = 0
    beginnings: set[PrefixKey] = set()
    for branch, need_tokens in needs.items():
        bare_tokens, prefixes = split(branch, need_tokens)
        beginnings.update(prefixes)
        if branch.charges:
            charged = [charge for charge in branch.charges if charge.backend.is_available]
            bare_tokens = max(0, bare_tokens - sum(charge.bare_tokens for charge in charged))
        added_tokens += bare_tokens
    for key in beginnings:
        if not any(key in backend.prefixes for backend in backends):
            added_tokens += known[key].tokens
    return added_tokens
