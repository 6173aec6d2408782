"""Real vLLM servers for the tests of this folder. Where vLLM's CPU build is not there, they fail and say so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm_servers import Router, Server

from examples.processes import Children


@pytest.fixture(scope="session")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Children]:
    """Starts processes; ends them all when the tests are over."""
    with Children(tmp_path_factory.mktemp("vllm-logs")) as children:
        yield children


@pytest.fixture(scope="session")
def server(children: Children) -> Server:
    """One vLLM that most tests share: 16,384 tokens, 8 requests at once, by priority, with KV events."""
    return Server.start(children, "shared", 16_384, "--max-num-seqs", "8", "--scheduling-policy", "priority")


@pytest.fixture
def router(server: Server, tmp_path: Path) -> Iterator[Router]:
    """A router in front of it; afterwards nothing may be left in it and its books must balance."""
    router = Router.start([server.url])
    yield router
    router.close()
