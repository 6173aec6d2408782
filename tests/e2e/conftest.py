"""A router and an emulated engine as processes, for real client libraries."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import daemons

TOOL_TASK = "list the folder"
SCRIPT = {
    "conversations": [
        {
            "match": TOOL_TASK,
            "turns": [
                {"content": "I look.", "tool_calls": [{"name": "bash", "arguments": {"command": "ls -a"}}]},
                {"content": "There are two files."},
            ],
        }
    ]
}


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemons.Daemon]:
    """An emulated engine at the speed of the machine that it stands for; one conversation is scripted."""
    script = tmp_path_factory.mktemp("script") / "script.json"
    script.write_text(json.dumps(SCRIPT))
    started = daemons.engine("--speed", "1", "--script", str(script)).wait_ready()
    yield started
    started.kill()


@pytest.fixture(scope="session")
def router(engine: daemons.Daemon) -> Iterator[daemons.Daemon]:
    """A router with all defaults; at the end nothing is left in it and it stops with status 0."""
    started = daemons.router([engine.url]).wait_ready()
    yield started
    left = started.get("/programs")
    recount = started.get("/debug/invariants")
    status = started.stop()
    assert (left, recount, status) == ({}, {"violations": []}, 0), started.log
