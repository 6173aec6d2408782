"""litellm, unchanged, through the router: the client library under mini-swe-agent and many others."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import daemons
import pytest
from daemons import Daemon

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(importlib.util.find_spec("litellm") is None, reason="needs the swebench extra"),
]


@pytest.fixture(scope="module")
def results(router: Daemon) -> Any:
    """What one process with litellm got; its programs are released after the last test."""
    client = Path(__file__).with_name("litellm_client.py")
    result = subprocess.run(
        [sys.executable, str(client), router.url],
        capture_output=True,
        text=True,
        timeout=100,
        env=daemons.environment({"LITELLM_LOCAL_MODEL_COST_MAP": "True"}),
    )
    assert result.returncode == 0, result.stderr
    yield json.loads(result.stdout.splitlines()[-1])
    for program in router.get("/programs"):
        router.post("/programs/release", {"program_id": program})


def test_plain_turn_is_answered_and_its_program_known(results: Any, router: Daemon) -> None:
    """``extra_body`` reaches the router as litellm sends it."""
    assert results["plain"] == {"text": True, "tokens": 5}
    assert router.get("/programs/litellm-plain")["step_count"] == 1


def test_tool_call_round_trip_is_one_program_of_one_conversation(results: Any, router: Daemon) -> None:
    """litellm rewrites messages: both turns are still told to be the same conversation."""
    assert results["tools"] == {
        "call": ["bash", {"command": "ls -a"}],
        "reason": "tool_calls",
        "end": "There are two files.",
    }
    program = router.get("/programs/litellm-tools")
    assert (program["step_count"], program["conversations"]) == (2, 1)


def test_stream_comes_in_pieces_with_its_usage(results: Any) -> None:
    """Streaming with the usage event."""
    assert results["stream"] == {"pieces": True, "usage": [6]}


def test_concurrent_turns_are_all_answered(results: Any, router: Daemon) -> None:
    """Eight programs at once through litellm's asynchronous client."""
    assert results["many"] == [4] * 8
    assert {f"litellm-{number}" for number in range(8)} <= set(router.get("/programs"))


def test_refusal_becomes_litellm_s_own_error(results: Any) -> None:
    """An unknown model is its NotFoundError, which mini-swe-agent does not repeat."""
    assert results["errors"] == ["NotFoundError", 404]
