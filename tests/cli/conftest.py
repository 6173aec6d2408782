"""A router and an engine as processes, for the commands that talk to one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import daemons


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No THUNDERAGENT_* variable of the developer's reaches a test."""
    for name in list(os.environ):
        if name.startswith("THUNDERAGENT_"):
            monkeypatch.delenv(name)


ROUTER_TOKEN = "sk-of-the-router"
BACKEND_KEY = "sk-of-the-backend"


@pytest.fixture(scope="session")
def engine() -> Iterator[daemons.Daemon]:
    """An emulated engine."""
    started = daemons.engine().wait_ready()
    yield started
    started.kill()


@pytest.fixture(scope="session")
def router(engine: daemons.Daemon) -> Iterator[daemons.Daemon]:
    """A router that asks for a token, with JSON logs at their most talkative; started without a sub-command."""
    started = daemons.Daemon(
        ["--backends", engine.url, "--host", "127.0.0.1", "--port", "0", "--log-level", "debug"],
        {"THUNDERAGENT_API_TOKEN": ROUTER_TOKEN, "THUNDERAGENT_BACKEND_API_KEY": BACKEND_KEY},
    ).wait_ready()
    started.headers["Authorization"] = f"Bearer {ROUTER_TOKEN}"
    yield started
    started.kill()
