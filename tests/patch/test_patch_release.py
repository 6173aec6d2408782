"""One release over HTTP."""

from __future__ import annotations

import logging
import socket
import threading
import time

import pytest
from patch_stubs import RouterStub

from minisweagent_patch.release import send_release

PATH = "/programs/release"


def test_release_is_posted_once(router: RouterStub) -> None:
    """A router that answers 200 is asked once."""
    assert send_release(router.url + PATH, "p", None, 2.0)
    assert router.releases == [(PATH, "p", None)]


def test_api_key_is_sent_as_bearer_token(router: RouterStub) -> None:
    """A key becomes an Authorization header; it beats user and password in the URL."""
    url = router.url.replace("://", "://user:pass@") + PATH
    assert send_release(url, "p", "secret", 2.0)
    assert send_release(url, "q", None, 2.0)
    assert [key for _, _, key in router.releases] == ["Bearer secret", "Basic dXNlcjpwYXNz"]


def test_server_error_is_tried_once_more(router: RouterStub) -> None:
    """A passing error does not lose the release."""
    router.answers.extend([503])
    assert send_release(router.url + PATH, "p", None, 2.0)
    assert router.released_ids == ["p", "p"]


def test_lasting_server_error_is_logged_and_not_raised(router: RouterStub, caplog: pytest.LogCaptureFixture) -> None:
    """Two attempts, one line, no exception."""
    router.answers.extend([500, 503])
    with caplog.at_level(logging.WARNING, "minisweagent_patch"):
        assert not send_release(router.url + PATH, "p", None, 2.0)
    assert router.released_ids == ["p", "p"]
    assert caplog.messages == [f"program p was not released at {router.url}{PATH}: HTTP 503"]


@pytest.mark.parametrize(("status", "hint"), [(400, ""), (401, " (set THUNDERAGENT_API_KEY)"), (302, ""), (307, "")])
def test_refusal_is_not_tried_again(
    status: int, hint: str, router: RouterStub, caplog: pytest.LogCaptureFixture
) -> None:
    """Client errors and redirects would come again; they are logged at once."""
    router.answers.extend([status])
    with caplog.at_level(logging.WARNING, "minisweagent_patch"):
        assert not send_release(router.url + PATH, "p", None, 2.0)
    assert router.released_ids == ["p"]
    assert caplog.messages == [f"program p was not released at {router.url}{PATH}: HTTP {status}{hint}"]


@pytest.mark.parametrize("status", [404, 405, 501])
def test_server_that_is_no_router_is_said_once(
    status: int, router: RouterStub, caplog: pytest.LogCaptureFixture
) -> None:
    """A plain inference server gets one harmless request per program and the log gets one line."""
    router.answers.extend([status, status])
    with caplog.at_level(logging.WARNING, "minisweagent_patch"):
        assert not send_release(router.url + PATH, "p", None, 2.0)
        assert not send_release(router.url + PATH, "q", None, 2.0)
    assert len(caplog.messages) == 1
    assert f"answered {status}: this API base does not look like thunderagent" in caplog.messages[0]


def test_hanging_endpoint_costs_the_limit_and_no_more(router: RouterStub, caplog: pytest.LogCaptureFixture) -> None:
    """Both attempts together keep to the time they were given."""
    router.hang = threading.Event()
    started = time.monotonic()
    with caplog.at_level(logging.WARNING, "minisweagent_patch"):
        assert not send_release(router.url + PATH, "p", None, 0.2)
    assert time.monotonic() - started < 1.0
    assert len(caplog.messages) == 1


def test_refused_connection_is_logged_and_not_raised(caplog: pytest.LogCaptureFixture) -> None:
    """A router that is gone costs one line."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://user:pass@127.0.0.1:{unused.getsockname()[1]}{PATH}"
        with caplog.at_level(logging.WARNING, "minisweagent_patch"):
            assert not send_release(url, "p", None, 1.0)
    assert len(caplog.messages) == 1
    assert "pass" not in caplog.messages[0]


@pytest.mark.parametrize("url", ["http://h h/programs/release", "http://127.0.0.1:99999/programs/release"])
def test_unusable_url_is_logged_and_not_raised(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """What urllib refuses to send is a failed release, not an exception."""
    with caplog.at_level(logging.WARNING, "minisweagent_patch"):
        assert not send_release(url, "p", None, 0.3)
    assert len(caplog.messages) == 1


def test_server_that_speaks_no_http_is_logged_and_not_raised(caplog: pytest.LogCaptureFixture) -> None:
    """Garbage on the port is a failed release."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"garbage\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with caplog.at_level(logging.WARNING, "minisweagent_patch"):
            assert not send_release(f"http://127.0.0.1:{server.getsockname()[1]}{PATH}", "p", None, 1.0)
        thread.join()
    assert "BadStatusLine" in caplog.messages[0]


def test_loopback_release_ignores_proxies(router: RouterStub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy for the outside world does not get what stays on this machine."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert send_release(router.url + PATH, "p", None, 2.0)
    assert router.released_ids == ["p"]
