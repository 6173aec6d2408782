"""Every test of the patch starts with no patch, no program, nothing said, and none of its variables set."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from minisweagent_patch import litellm_setup, model, patching, programs, release, stopping

sys.path.insert(0, str(Path(__file__).parent))

from patch_stubs import RouterStub

_VARIABLES = (
    "THUNDERAGENT_RELEASE_URL",
    "THUNDERAGENT_API_KEY",
    "THUNDERAGENT_CLIENT_TIMEOUT_SECONDS",
    "THUNDERAGENT_CONNECTIONS",
    "REQUEST_TIMEOUT",
    "HOSTED_VLLM_API_BASE",
    "OPENAI_API_BASE",
    "OPENAI_BASE_URL",
    "MSWEA_MODEL_NAME",
)


@pytest.fixture(autouse=True)
def fresh_patch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package's process-wide state, empty before and checked after."""
    for variable in _VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    for state in (programs._said, release._said_not_a_router, litellm_setup._checked, model._classes):
        state.clear()
    yield
    patching.uninstall()
    patching._originals.clear()
    stopping._stopping.clear()
    assert patching._contexts == []
    assert programs.active_program_ids() == ()


@pytest.fixture
def router() -> Iterator[RouterStub]:
    """A router stub that listens."""
    with RouterStub() as stub:
        yield stub
