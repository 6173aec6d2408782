"""Programs of this process: their ids, and their release exactly once on every way out."""

from __future__ import annotations

import atexit
import logging
import os
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from minisweagent_patch.endpoint import api_base_from_environment, release_url
from minisweagent_patch.release import send_release
from minisweagent_patch.settings import Settings

logger = logging.getLogger("minisweagent_patch")

_LONGEST_NAME = 200  # with prefix and uuid well under the router's 256 bytes
_RELEASE_THREADS = 16
_EXIT_SECONDS = 5.0

# Re-entrant: a finaliser can run, on the same thread, while this thread holds it.
_registry_lock = threading.RLock()
_registry: dict[str, Program] = {}
_said: set[str] = set()


def new_program_id(name: str, prefix: str = "") -> str:
    """A program id that no other run, process or host makes: ``<prefix>-<sanitised name>-<32 hex digits>``.

    The name is cut to 200 characters of ``[A-Za-z0-9._-]``; no counter is involved, so it holds across fork.
    """
    sanitised = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:_LONGEST_NAME].strip("-") or "program"
    return "-".join(part for part in (prefix, sanitised, uuid.uuid4().hex) if part)


class Program:
    """One agent run as the router sees it; a context manager that releases it at its end.

    It is released by the process that made it only: a forked child that unwinds through the
    parent's frames releases nothing.
    """

    def __init__(
        self, program_id: str, url: str | None, api_key: str | None = None, release_seconds: float = 3.0
    ) -> None:
        """``url``: the release endpoint, or None where none is known (nothing is sent then)."""
        self.id = program_id
        self._url = url
        self._api_key = api_key
        self._release_seconds = release_seconds
        self._pid = os.getpid()
        self._claim = threading.Lock()
        self._finished = threading.Event()
        with _registry_lock:
            _registry[program_id] = self

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def release(self, within_seconds: float | None = None) -> None:
        """Tell the router that the run is over; the first call counts, later ones return at once.

        Waits ``within_seconds`` (None: as configured) at most and never raises for a router that
        is slow, gone or answers an error.
        """
        limit = self._release_seconds if within_seconds is None else within_seconds
        thread = self.release_soon(limit)
        if thread is not None:
            thread.join(limit + 0.2)

    def release_soon(self, within_seconds: float | None = None) -> threading.Thread | None:
        """Start the release on a thread of its own; None: nothing to wait for.

        For finalisers, which run at any point of any thread and must not wait.
        """
        if not self._claimed():
            return None
        limit = self._release_seconds if within_seconds is None else within_seconds
        thread = threading.Thread(target=self._send, args=(limit,), name="program-release", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no new threads: at interpreter shutdown, or a limit on processes
            self._send(limit)
            return None
        return thread

    def release_here(self, within_seconds: float) -> None:
        """Release on the caller's thread, in ``within_seconds`` or as configured, whichever is less."""
        if self._claimed():
            self._send(min(within_seconds, self._release_seconds))

    def wait_released(self, seconds: float) -> None:
        """Wait until a release that another thread began has ended, at most ``seconds``."""
        self._finished.wait(max(0.0, seconds))

    def _claimed(self) -> bool:
        return self._pid == os.getpid() and self._claim.acquire(blocking=False)

    def _send(self, within_seconds: float) -> None:
        try:
            if self._url is not None:
                send_release(self._url, self.id, self._api_key, within_seconds)
        finally:
            with _registry_lock:
                _registry.pop(self.id, None)
            self._finished.set()


@contextmanager
def program(
    name: str,
    *,
    api_base: str | None = None,
    release_url: str | None = None,
    api_key: str | None = None,
    release_seconds: float = 3.0,
) -> Iterator[str]:
    """Yield a fresh program id for one run and release it afterwards, however the block ends.

    For runners that do not go through ``process_instance``: put the id into every request as the
    body's ``program_id`` (``extra_body={"program_id": program_id}`` with the OpenAI SDK and litellm).

    Args:
        name: what the run is called; becomes part of the id.
        api_base: the API base the requests go to; None: ``HOSTED_VLLM_API_BASE``,
            ``OPENAI_API_BASE`` or ``OPENAI_BASE_URL``.
        release_url: overrides ``THUNDERAGENT_RELEASE_URL`` and what follows from ``api_base``.
        api_key: bearer token for the release; None: ``THUNDERAGENT_API_KEY``.
        release_seconds: the most the release may take.
    """
    settings = Settings(release_url=release_url, api_key=api_key, release_seconds=release_seconds)
    with open_program(new_program_id(name), settings, api_base or api_base_from_environment(), None) as opened:
        yield opened.id


def open_program(program_id: str, settings: Settings, api_base: str | None, api_key: str | None) -> Program:
    """A registered program; ``api_base`` and ``api_key`` serve where the settings name nothing."""
    target = settings.explicit_release_url() or api_base
    url = release_url(target) if target else None
    if not target:
        say_once("no-url", "no API base is configured, so programs are not released; set THUNDERAGENT_RELEASE_URL")
    elif url is None:
        say_once(f"bad-url {target}", f"{target!r} is not an http(s) URL, so programs are not released")
    key = settings.explicit_api_key() or api_key
    return Program(program_id, url, key, settings.release_seconds)


def is_active(program_id: object) -> bool:
    """Whether the id belongs to a program of this process that has not been released."""
    with _registry_lock:
        return isinstance(program_id, str) and program_id in _registry


def active_program_ids() -> tuple[str, ...]:
    """The ids of this process that are not released yet, oldest first."""
    with _registry_lock:
        return tuple(_registry)


def release_active(within_seconds: float = _EXIT_SECONDS) -> None:
    """Release everything that is still active, several at a time, in ``within_seconds`` at most.

    For the way out of a process; releases that other threads began are waited for.
    """
    deadline = time.monotonic() + within_seconds
    with _registry_lock:
        remaining = list(_registry.values())
    waiting = deque(remaining)

    def drain() -> None:
        while waiting and (seconds := deadline - time.monotonic()) > 0:
            try:
                each = waiting.popleft()
            except IndexError:  # another thread took the last one
                return
            each.release_here(seconds)

    try:
        for _ in remaining[:_RELEASE_THREADS]:
            threading.Thread(target=drain, name="program-release", daemon=True).start()
    except RuntimeError:  # interpreter shutdown allows no new threads
        drain()
    for each in remaining:
        each.wait_released(deadline - time.monotonic())


def say_once(key: str, message: str) -> None:
    """Log a warning the first time this process meets it."""
    with _registry_lock:
        if key in _said:
            return
        _said.add(key)
    logger.warning("%s", message)


def _forget_parent() -> None:
    """A forked child starts with no programs, and with a lock that no lost thread holds."""
    global _registry_lock
    _registry_lock = threading.RLock()
    _registry.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
atexit.register(release_active)
