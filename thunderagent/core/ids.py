"""The names by which the core knows things: plain values, so that events and commands can be written down."""

from __future__ import annotations

from typing import NewType

__all__ = ["BackendId", "BranchId", "PrefixKey", "ProgramId", "TurnId"]

ProgramId = NewType("ProgramId", str)
"""One agent run, as the client names it."""

TurnId = NewType("TurnId", int)
"""One inference request; given by the driver, never used twice within a process."""

BackendId = NewType("BackendId", str)
"""One inference server: its normalised base URL."""

BranchId = NewType("BranchId", str)
"""One conversation within a program: the main one, or a sub-agent's."""

PrefixKey = NewType("PrefixKey", str)
"""A fingerprint of a beginning that several conversations may share (system prompt, first prompt of a group)."""
