"""Wires the followers of KV events into a daemon, where that is asked for."""

from __future__ import annotations

from thunderagent.backends import WatchedBackend
from thunderagent.errors import ConfigError
from thunderagent.server.state import State

__all__ = ["follow_kv_events"]


def follow_kv_events(state: State) -> None:
    """Have the KV events of each healthy backend followed that is a vLLM.

    Raises:
        ConfigError: pyzmq is not installed.
    """
    try:
        from thunderagent.kv_events.following import KvFollowing  # pyzmq is an optional extra
    except ImportError as error:
        raise ConfigError(f"--kv-events needs pyzmq ({error}): pip install 'thunderagent[kv-events]'") from None
    following = KvFollowing(state.gateway.observe_prefixes, state.gateway.program_of_session)

    async def follow(entry: WatchedBackend) -> None:
        if entry.reader.name == "vllm":
            await following.follow(entry.config.id, entry.client)

    state.following, state.pool.follow = following, follow
    state.metrics.show_kv_events(following.cached_tokens, following.gaps)
