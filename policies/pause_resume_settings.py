"""The options of ``pause-resume``, and their presets."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import evolve, field, frozen, validators

from policies.options import read_options
from thunderagent.policy import OptionError

__all__ = ["PRESETS", "Settings", "settings_from"]


@frozen
class Settings:
    """Options of the policy; tokens and seconds. Policies/pause-resume.md says when to choose which."""

    tick_seconds: float = field(default=1.0, validator=validators.gt(0))
    """How often to look without an event: for what changes with time only, or with ``react=false`` the only time."""
    react: bool = True
    """Pause and resume on events; false: on ticks only (published), but for the end of a quantum."""

    # Letting in
    resume_order: str = field(
        default="oldest", validator=validators.in_(("oldest", "first-come", "smallest", "published"))
    )
    """Who is let in first: who asks for longest; the program that came to the router first (program-level
    first-come-first-served); who needs the fewest tokens; or the published scores (eq. 10), on ticks."""
    wait_weight: float = field(default=1.0, validator=validators.le(1))
    """With ``oldest``: how much of the time since a program asks counts, and how much since it came to the router:
    1 is who asks for longest, towards 0 it nears first-come."""
    ageing_seconds: float = 0.0
    """With ``smallest``: each such span of waiting halves the size by which a waiter is ranked; 0: no ageing."""
    resume_on: str = field(
        default="prefer-origin",
        validator=validators.in_(("prefer-origin", "origin", "resident", "roomiest", "tightest")),
    )
    """The last backend where it fits, else the roomiest; the last backend only; the last one only while the prefix
    is judged to lie there; always the roomiest (published); always the one that it fills best."""
    resident_ratio: float = field(default=0.5, validator=validators.le(1))
    """With ``resident``: a prefix of which less is probably cached counts as gone."""
    move_after_seconds: float = 0.0
    """With ``origin`` and ``resident``: who has waited for so long may go anywhere; 0: never."""
    low_watermark: float = field(default=1.0, validator=validators.le(1))
    """lambda_min: let in on a backend only while less than this share of its capacity is used."""
    growth_reserve: float = field(default=0.1, validator=validators.lt(1))
    """Share of the capacity kept free when letting in, for the growth of those already in."""
    guest_ratio: float = field(default=0.2, validator=validators.le(1))
    """Turns without a place of their own (one-off turns) go before programs that wait while all that run so on a
    backend, released programs' last turns included, take no more than this share of its capacity and what runs leaves
    room for them; 0, and larger ones: they wait for room."""
    pace_prefills: bool = False
    """Let who waits in only where the prompts of those let in before are probably computed, and one-off turns where
    the least of them is left; where nothing tells how fast a backend computes, nobody waits for that."""
    forced_resume: bool = False
    """At the hold limit let the turn in over capacity (published), where ``--on-hold-limit`` does not say."""

    # Accounting
    buffer_tokens: int = 100
    """Decode headroom per admitted program."""
    acting_weight: float = 1.0
    """How much the tokens of an acting program count."""
    shared_correction: str = field(default="prefixes", validator=validators.in_(("none", "prefixes", "usage")))
    """Beginnings that programs share count once (``prefixes``), for each (``none``), or once and corrected by the
    engine's usage gauge as published (``usage``)."""
    half_life_seconds: float = field(default=10.0, validator=validators.gt(0))
    """With a decay: acting tokens count 2^(-t / half-life) after t seconds in a tool."""
    resume_decay: bool = False
    """Decay when letting in (the published code's ``use_acting_token_decay``)."""
    pause_decay: bool = False
    """Decay when pausing as well (eq. 7)."""

    # Taking places away
    high_watermark: float = field(default=1.0, validator=validators.le(1))
    """lambda_max: pause above this share of the capacity."""
    pause_order: str = field(default="smallest", validator=validators.in_(("smallest", "largest", "last-come")))
    """Which acting, then which reasoning programs go first: the smallest (eq. 11), the largest, or the program that
    came to the router last."""
    learned_lease: bool = True
    """Programs idle for longer than what they left is worth its room (``ClusterView.keep_seconds``) may be paused for
    a waiter that fits nowhere, and conversations so idle beside others of their program do not count. Off where
    ``idle_lease_seconds`` is given."""
    idle_lease_seconds: float = 30.0
    """Without ``learned_lease``: programs idle for longer may be paused for a waiter that fits nowhere, longest idle
    first; 0: never."""
    rotation_ratio: float = field(default=0.0, validator=validators.lt(1))
    """An admitted program yields to who waits once it has had its place for so long that prefilling it again takes
    this share of its part of the engine; 0: never."""
    quantum_turns: int = 0
    """An admitted program that has taken so many turns yields at its next turn boundary to who waits and would be let
    in before it; 0: never."""
    quantum_seconds: float = 0.0
    """The same after its turns ran for so many seconds, summed over turns that run at once; 0: never."""
    turns_per_program: int = 0
    """Turns of one program that may run at once, the others wait at its place; 0: no bound."""

    @property
    def rotates(self) -> bool:
        """Whether programs yield at the end of a quantum."""
        return bool(self.quantum_turns or self.quantum_seconds or self.rotation_ratio)

    @property
    def reclaims(self) -> bool:
        """Whether idle programs are paused for those that wait."""
        return self.learned_lease or self.idle_lease_seconds > 0


PRESETS: Mapping[str, Settings] = {
    "default": Settings(),
    "paper": Settings(
        tick_seconds=5.0,
        react=False,
        resume_order="published",
        resume_on="roomiest",
        growth_reserve=0.0,
        guest_ratio=0.0,
        forced_resume=True,
        shared_correction="usage",
        half_life_seconds=1.0,
        learned_lease=False,
        idle_lease_seconds=0.0,
    ),
}


_NOT_PUBLISHED = (
    "resume_on",
    "resident_ratio",
    "move_after_seconds",
    "ageing_seconds",
    "wait_weight",
    "guest_ratio",
    "pace_prefills",
    "quantum_turns",
    "quantum_seconds",
)
"""Options that other orders than the published one go by."""


def settings_from(policy: str, options: Mapping[str, str]) -> Settings:
    """``preset`` (default, paper) first, then single options on top of it.

    Raises:
        OptionError: an unknown preset or option, a value that it cannot have, or two that do not go together.
    """
    rest = dict(options)
    preset = rest.pop("preset", "default")
    if preset not in PRESETS:
        raise OptionError(f"policy {policy!r}: option preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    base = evolve(PRESETS[preset], learned_lease=False) if "idle_lease_seconds" in rest else PRESETS[preset]
    settings = read_options(policy, base, rest, also=("preset",))
    if settings.growth_reserve >= settings.high_watermark:
        raise OptionError(
            f"policy {policy!r}: option growth_reserve must be below high_watermark, or nobody fits beside others: "
            f"{settings.growth_reserve:g}, and {settings.high_watermark:g}"
        )
    return _published(policy, rest, settings) if settings.resume_order == "published" else settings


def _published(policy: str, options: Mapping[str, str], settings: Settings) -> Settings:
    """The published order picks by score whoever fits all rooms together, and places them where the most room is.

    A program that made room at the end of a quantum would be picked again before newcomers.
    """
    for name in _NOT_PUBLISHED:
        if name in options and getattr(settings, name) != getattr(PRESETS["paper"], name):
            raise OptionError(
                f"policy {policy!r}: option {name}={options[name]} does nothing with resume_order=published: "
                "leave it out, or set resume_order to oldest, first-come or smallest"
            )
    return evolve(settings, resume_on="roomiest", guest_ratio=0.0)
