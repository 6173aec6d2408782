"""The pool limit and the dry call, against a stand-in for litellm."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import httpx
import pytest

from minisweagent_patch import LitellmUnusableError, check_litellm, lift_connection_limit


@pytest.fixture
def litellm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A litellm with nothing set, whose dry call works."""
    module = ModuleType("litellm")
    module.client_session = None  # type: ignore[attr-defined]
    module.completion = lambda **arguments: arguments  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "litellm", module)
    return module


def raises(error: BaseException, cause: BaseException | None = None) -> Callable[..., Any]:
    """A completion() that fails."""

    def completion(**arguments: Any) -> None:
        raise error from cause

    return completion


def test_more_workers_than_connections_raise_the_limits(litellm: ModuleType) -> None:
    """128 workers get a session and a transport that carry 128 requests at once."""
    assert lift_connection_limit(128)
    pools = [litellm.client_session._transport._pool, litellm.sync_transport._pool]
    assert [(pool._max_connections, pool._max_keepalive_connections) for pool in pools] == [(136, 136)] * 2
    assert litellm.client_session.follow_redirects
    litellm.client_session.close()


def test_few_workers_leave_litellm_unimported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 100 workers fit the default pool, so nothing is imported or set."""
    monkeypatch.setitem(sys.modules, "litellm", None)
    assert not lift_connection_limit(100)


def test_callers_own_session_and_transport_stay(litellm: ModuleType) -> None:
    """What a runner has set on purpose is not replaced."""
    with httpx.Client() as session, httpx.HTTPTransport() as transport:
        litellm.client_session, litellm.sync_transport = session, transport  # type: ignore[attr-defined]
        assert not lift_connection_limit(128)
        assert (litellm.client_session, litellm.sync_transport) == (session, transport)


def test_closing_a_client_leaves_the_shared_transport_open(litellm: ModuleType) -> None:
    """litellm drops a client after an hour; the other clients' requests go on over the same pool."""
    lift_connection_limit(128)
    closed: list[bool] = []
    litellm.sync_transport._pool.close = lambda: closed.append(True)
    httpx.Client(transport=litellm.sync_transport).close()
    assert closed == []
    litellm.client_session.close()


def test_dry_call_that_works_is_made_once(litellm: ModuleType) -> None:
    """The dry call carries a tool and a mocked answer, and its result is kept."""
    calls: list[dict[str, Any]] = []
    litellm.completion = lambda **arguments: calls.append(arguments)  # type: ignore[attr-defined]
    check_litellm()
    check_litellm()
    check_litellm(tools=False)
    assert [(each["mock_response"], "tools" in each) for each in calls] == [("ok", True), ("ok", False)]


@pytest.mark.parametrize(
    ("error", "cause", "remedy"),
    [
        (ModuleNotFoundError("No module named 'mcp'", name="mcp"), None, ", or pip install mcp"),
        (RuntimeError("APIConnectionError"), ModuleNotFoundError("No module named 'x'", name="fastapi.y"), "fastapi"),
        (ImportError("cannot import name 'z' from 'mcp'", name="mcp"), None, "<1.105'"),
    ],
)
def test_failing_import_is_reported_with_its_remedy(
    error: BaseException, cause: BaseException | None, remedy: str, litellm: ModuleType
) -> None:
    """An import error, bare or wrapped, becomes one error that says what to install; it is kept."""
    litellm.completion = raises(error, cause)  # type: ignore[attr-defined]
    for _ in range(2):
        with pytest.raises(LitellmUnusableError) as raised:
            check_litellm()
    assert str(cause or error) in str(raised.value)
    assert "pip install 'litellm>=1.101,<1.105'" in str(raised.value)
    assert str(raised.value).endswith(remedy)


def test_missing_litellm_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """No litellm at all is the same error."""
    monkeypatch.setitem(sys.modules, "litellm", None)
    with pytest.raises(LitellmUnusableError, match="import of litellm halted"):
        check_litellm()


def test_other_failure_of_the_dry_call_is_logged_only(litellm: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    """What is not an import error may work for real calls."""
    litellm.completion = raises(ValueError("odd"))  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING, "minisweagent_patch"):
        check_litellm()
    assert caplog.messages == ["litellm's dry call failed, continuing: ValueError: odd"]
