"""Runs the router until it is told to stop: the first signal drains, the second cuts what still runs."""

from __future__ import annotations

import asyncio
import signal
from ipaddress import ip_address

import structlog
from aiohttp import web

from thunderagent import __version__
from thunderagent.config import Settings
from thunderagent.errors import ConfigError, listening_failure
from thunderagent.garbage import small_collections
from thunderagent.server.app import create_app
from thunderagent.server.state import STATE, State

__all__ = ["run"]

_log = structlog.get_logger("thunderagent.daemon")

_BACKLOG = 16_384
"""Connections that may wait to be accepted, as far as the kernel lets (net.core.somaxconn): all agents of a runner
connect at once."""

_TELL_SECONDS = 1.0
"""How long turns that are cut may take to tell their clients so."""

_CANCEL_SECONDS = 0.25
"""How long handlers that outlasted the drain are waited for, once before they are cancelled and once after."""


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns the exit status: 0, or 128 and the signal's number where a second signal ended the drain and cut what
    still ran.

    Raises:
        ConfigError: the port is taken, or settings do not work out.
    """
    try:
        import uvloop  # an optional extra
    except ImportError:
        return asyncio.run(_serve(settings))
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    return asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> int:
    app = create_app(settings)
    signals = _Signals()
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=_CANCEL_SECONDS)
    status = 0
    try:
        await _check_address(settings)
        if await _set_up(runner, signals):
            status = await _listen(settings, runner, app[STATE], signals)
    finally:
        await runner.cleanup()
        signals.restore()
    _log.info("daemon.stopped", status=status)
    return status


async def _check_address(settings: Settings) -> None:
    """Before the backends are looked at, which may take a while; the port opens after that."""
    loop = asyncio.get_running_loop()
    try:
        probe = await loop.create_server(asyncio.Protocol, settings.host, settings.port, start_serving=False)
    except OSError as error:
        raise ConfigError(listening_failure(settings.host, settings.port, error)) from None
    probe.close()
    await probe.wait_closed()


async def _set_up(runner: web.AppRunner, signals: _Signals) -> bool:
    """Look at the backends first; False where a signal came before that was done."""
    setting_up = asyncio.create_task(runner.setup())
    stopping = asyncio.create_task(signals.first.wait())
    await asyncio.wait((setting_up, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not setting_up.done():
        setting_up.cancel()
        await asyncio.wait((setting_up,))
    if setting_up.cancelled():
        return False
    setting_up.result()
    return True


async def _listen(settings: Settings, runner: web.AppRunner, state: State, signals: _Signals) -> int:
    """Until a signal comes, and the drain is over; the exit status."""
    site = web.TCPSite(runner, settings.host, settings.port, backlog=_BACKLOG)
    try:
        await site.start()
    except OSError as error:
        raise ConfigError(listening_failure(settings.host, settings.port, error)) from None
    _say_started(settings, runner)
    with small_collections():
        await signals.first.wait()
        is_drained = await _drain(state, signals)
        status = 128 + signals.second_number if signals.second.is_set() and not is_drained else 0
        await _cut_turns(state)
    return status


class _Signals:
    """SIGTERM and SIGINT as events: the first asks to drain, the second to stop now."""

    def __init__(self) -> None:
        self.first, self.second = asyncio.Event(), asyncio.Event()
        self.second_number = 0
        """Number of the second signal; 0: none came."""
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._received, number)

    def _received(self, number: int) -> None:
        if not self.first.is_set():
            self.first.set()
        elif not self.second.is_set():
            self.second_number = number
            self.second.set()

    def restore(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(number)


async def _drain(state: State, signals: _Signals) -> bool:
    """No new turns; those that run finish within the drain time, unless a second signal comes.

    Returns whether all of them did.
    """
    gateway, drain_seconds = state.gateway, state.settings.drain_seconds
    _log.info("daemon.draining", turns=len(gateway.tickets), seconds=drain_seconds)
    gateway.drain()
    deadline_at = asyncio.get_running_loop().time() + drain_seconds
    while (gateway.tickets or state.unscheduled_count) and not signals.second.is_set():
        left_seconds = deadline_at - asyncio.get_running_loop().time()
        if left_seconds <= 0:
            break
        try:
            await asyncio.wait_for(signals.second.wait(), min(0.05, left_seconds))
        except asyncio.TimeoutError:
            pass
    if not gateway.tickets and not state.unscheduled_count:
        return True
    _log.warning("daemon.turns_cut", turns=len(gateway.tickets), unscheduled=state.unscheduled_count)
    return False


async def _cut_turns(state: State) -> None:
    """End the turns that still run while their connections are open, so that their clients are told."""
    state.is_stopping = True
    tasks = set(state.turn_tasks)
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_TELL_SECONDS)


def _say_started(settings: Settings, runner: web.AppRunner) -> None:
    port = runner.addresses[0][1] if runner.addresses else settings.port
    _log.info(
        "daemon.started",
        version=__version__,
        url=f"http://{settings.host}:{port}",
        policy=settings.policy,
        backends=[backend.url for backend in settings.backends],
    )
    if settings.api_token is None and not _is_loopback(settings.host):
        _log.warning("daemon.open_to_network", host=settings.host, remedy="--api-token, or --host 127.0.0.1")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
