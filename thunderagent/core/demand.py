"""What a program or a turn would take, computed once and read for each of many backends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import define, field

from thunderagent.core.ids import PrefixKey

if TYPE_CHECKING:
    from thunderagent.core.backend import Backend
    from thunderagent.core.program import Branch

__all__ = ["Demand"]


@define(eq=False)
class Demand:
    """Tokens to be taken on some backend that is not the program's place; as of now, not to be kept."""

    bare_tokens: int
    """Without prefixes that others may share."""
    prefixes: tuple[tuple[PrefixKey, int], ...]
    """Those prefixes, with their tokens."""
    charged: tuple[Branch, ...]
    """Branches that are charged on some backend already, as guests."""
    joining: Mapping[Backend, int] = field(factory=dict)
    """Of a turn that waits alone: what it adds where others of its branch are charged."""

    @property
    def tokens(self) -> int:
        """On a backend that has none of it."""
        return self.bare_tokens + sum(tokens for _, tokens in self.prefixes)

    def added_tokens(self, backend: Backend) -> int:
        """What the backend's account would grow by: not what is charged there, nor prefixes that are there. O(1) for
        a program of one conversation."""
        if self.joining:
            joining_tokens = self.joining.get(backend)
            if joining_tokens is not None:
                return joining_tokens
        tokens = self.bare_tokens
        held = backend.prefixes
        for key, prefix_tokens in self.prefixes:
            if key not in held:
                tokens += prefix_tokens
        for branch in self.charged:
            charge = branch.charge_on(backend)
            if charge is not None:
                tokens -= charge.bare_tokens
        return max(0, tokens)
