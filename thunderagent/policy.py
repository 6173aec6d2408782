"""Everything that the author of a scheduling policy imports."""

from __future__ import annotations

from thunderagent.core.commands import Notice, PrefixLost
from thunderagent.core.decisions import Admit, AdmitTurn, Decision, Move, Pause, Reconsider, Trigger, Yield
from thunderagent.core.events import Event
from thunderagent.core.ids import BackendId, BranchId, PrefixKey, ProgramId, TurnId
from thunderagent.core.policy import (
    ASSUMED_REFILL_SECONDS,
    ROTATION_RATIO,
    BackendView,
    ClusterView,
    DemandView,
    OptionError,
    Policy,
    ProgramView,
    ToolTimesView,
    TurnView,
    UnknownOption,
    WaiterView,
    roomiest,
)
from thunderagent.core.program import Standing, Status
from thunderagent.core.settings import OnHoldLimit

__all__ = [
    "ASSUMED_REFILL_SECONDS",
    "ROTATION_RATIO",
    "Admit",
    "AdmitTurn",
    "BackendId",
    "BackendView",
    "BranchId",
    "ClusterView",
    "Decision",
    "DemandView",
    "Event",
    "Move",
    "Notice",
    "OnHoldLimit",
    "OptionError",
    "Pause",
    "Policy",
    "PrefixKey",
    "PrefixLost",
    "ProgramId",
    "ProgramView",
    "Reconsider",
    "Standing",
    "Status",
    "ToolTimesView",
    "Trigger",
    "TurnId",
    "TurnView",
    "UnknownOption",
    "WaiterView",
    "Yield",
    "roomiest",
]
