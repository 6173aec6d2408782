"""Helpers for tests, shipped for the authors of policies and clients."""

from __future__ import annotations

from thunderagent.testing.policy_contract import PolicyContract
from thunderagent.testing.runs import Agent, ClosedLoop, random_run
from thunderagent.testing.scheduler_driver import SchedulerDriver

__all__ = ["Agent", "ClosedLoop", "PolicyContract", "SchedulerDriver", "random_run"]
