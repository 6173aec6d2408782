"""Which engines' KV events are followed: asks each backend where it publishes them, and tells what changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog
import zmq
import zmq.asyncio
from attrs import define, field

from thunderagent.core.events import CachedPrefix
from thunderagent.core.ids import BackendId, ProgramId
from thunderagent.kv_events.follower import KvFollower
from thunderagent.kv_events.mirror import CacheMirror, SessionBlocks
from thunderagent.kv_events.sources import Source, SourcesUnreadable, read_sources, says_emulated
from thunderagent.upstream.client import BackendClient, ForwardFailed

__all__ = ["KvFollowing"]

_log = structlog.get_logger("thunderagent.kv_events")

_PAGE = "/kv_event_sources"
_PAGE_SECONDS = 5.0
_AGAIN_SECONDS = 10.0
_REMEDY = (
    "start vLLM 0.32 or later with --kv-events-config.enable_kv_cache_events true --kv-events-config.publisher zmq "
    "--kv-events-config.endpoint 'tcp://*:5557' --kv-events-config.replay_endpoint 'tcp://*:5558'"
)
"""Without double quotes: neither form of the log escapes it, so that it can be pasted."""
_NO_REMEDY = "none: emulated engines publish no KV events; a real vLLM does"


@define(eq=False)
class KvFollowing:
    """Followers of all backends.

    ``tell`` gets what is cached of programs; ``program_of`` says whose a session is, None where it is nobody's.
    """

    tell: Callable[[BackendId, Sequence[CachedPrefix]], None]
    program_of: Callable[[str], ProgramId | None]
    followers: dict[BackendId, list[KvFollower]] = field(factory=dict)
    _context: zmq.asyncio.Context = field(factory=zmq.asyncio.Context)
    _is_told_off: set[BackendId] = field(factory=set)

    async def follow(self, backend: BackendId, client: BackendClient) -> None:
        """Follow a backend until cancelled; it is asked again where it has no events, or following them failed."""
        while True:
            try:
                sources = await self._sources(backend, client)
                if sources:
                    await self._follow_all(backend, sources)
            except zmq.ZMQError as error:
                _log.warning("kv_events.failed", backend=backend, error=str(error))
            except Exception:  # a bug in reading events must not end the following
                _log.exception("kv_events.failed", backend=backend)
            await asyncio.sleep(_AGAIN_SECONDS)

    def close(self) -> None:
        """Close what is left of the sockets, once all ``follow`` have ended."""
        self._context.destroy(linger=0)

    def cached_tokens(self, backend: BackendId) -> int | None:
        """Tokens of all blocks in the backend's cache; None while not all of it is known from its events."""
        followers = self.followers.get(backend)
        if followers is None or not all(follower.mirror.is_complete for follower in followers):
            return None
        return sum(follower.mirror.cached_tokens for follower in followers)

    def gaps(self, backend: BackendId) -> int:
        """Times that events were missed for good, since the backend was last followed."""
        return sum(follower.gaps for follower in self.followers.get(backend, ()))

    async def _sources(self, backend: BackendId, client: BackendClient) -> list[Source]:
        error = "it publishes none"
        try:
            page = await client.fetch(_PAGE, timeout_seconds=_PAGE_SECONDS)
            if page.status == 200:
                found = read_sources(page.body, client.base_url)
                taken = self._taken_by_another(backend, found)
                if found and taken is None:
                    self._is_told_off.discard(backend)
                    return found
                error = taken or error
            else:
                error = f"{_PAGE}: status {page.status}"
        except (ForwardFailed, SourcesUnreadable) as failure:
            error = f"{_PAGE}: {failure}"
        if backend not in self._is_told_off:
            self._is_told_off.add(backend)
            remedy = _NO_REMEDY if await self._is_emulated(client) else _REMEDY
            _log.warning("kv_events.none", backend=backend, error=error, remedy=remedy)
        return []

    @staticmethod
    async def _is_emulated(client: BackendClient) -> bool:
        try:
            return says_emulated((await client.fetch("/version", timeout_seconds=_PAGE_SECONDS)).body)
        except ForwardFailed:
            return False

    def _taken_by_another(self, backend: BackendId, sources: Sequence[Source]) -> str | None:
        """Where two engines send to one address their messages cannot be told apart."""
        for other, followers in self.followers.items():
            for follower in followers:
                for source in sources:
                    if other != backend and follower.source.events == source.events:
                        return f"{source.events.endpoint} is the endpoint of {other} too: give each server its own"
        return None

    async def _follow_all(self, backend: BackendId, sources: Sequence[Source]) -> None:
        followers: list[KvFollower] = []

        def report(changes: Sequence[SessionBlocks]) -> None:
            known = [
                (program, change) for change in changes if (program := self.program_of(change.session)) is not None
            ]
            self.tell(backend, [_merged(program, change, followers) for program, change in known])

        for source in sources:
            mirror = CacheMirror(lambda session: self.program_of(session) is not None)
            followers.append(KvFollower(backend, source, report, self._context, mirror))
        self.followers[backend] = followers
        tasks = [asyncio.ensure_future(follower.run()) for follower in followers]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            if self.followers.get(backend) is followers:
                del self.followers[backend]


def _merged(program: ProgramId, change: SessionBlocks, followers: Sequence[KvFollower]) -> CachedPrefix:
    """A program's turns go to any data-parallel rank: the rank that has most of it counts.

    A rank whose messages were missed counts as one that has nothing, as long as another one knows what it has.
    """
    best = change
    if len(followers) > 1:
        found = [
            blocks for follower in followers if (blocks := follower.mirror.blocks_of(change.session)) is not None
        ]
        best = max(found, key=lambda blocks: blocks.prefix_tokens or 0, default=change)
    return CachedPrefix(program, best.prefix_tokens, best.held_tokens)
