"""Fixtures of the server's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from router_harness import Stack


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    """Starts routers and backends; afterwards nothing may be left in them and the books must balance."""
    stack = Stack()
    yield stack
    await stack.close()
