"""Where an engine's events are to be had, from what it says of its publishers."""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec
from attrs import frozen

__all__ = ["Address", "Source", "SourcesUnreadable", "read_sources", "says_emulated"]

_OWN_HOSTS = ("*", "0.0.0.0", "::", "[::]")


class _Publisher(msgspec.Struct):
    endpoint: str
    publisher: str = "zmq"
    replay_endpoint: str | None = None
    topic: str = ""
    enable_kv_cache_events: bool = True


class _Version(msgspec.Struct):
    emulated: bool = False


_decoder = msgspec.json.Decoder(dict[str, _Publisher])


@frozen
class Address:
    """A ZMQ address as the subscriber uses it.

    ``may_bind``: vLLM connects to an endpoint that names a host, for then many engines may send to one subscriber;
    so it is to be bound where the address is this machine's.
    """

    endpoint: str
    may_bind: bool


@frozen
class Source:
    """One publisher: an engine has one per data-parallel rank. ``replay`` None: it cannot repeat what was missed."""

    rank: int
    events: Address
    replay: str | None
    topic: str


class SourcesUnreadable(Exception):
    """What the engine said is not of the known form."""


def read_sources(page: bytes, backend_url: str) -> list[Source]:
    """The publishers named in an answer of ``GET /kv_event_sources``, with addresses that can be reached from here.

    Raises:
        SourcesUnreadable: the page is something else.
    """
    try:
        publishers = _decoder.decode(page)
        return [
            Source(
                int(rank),
                _events_address(entry.endpoint, backend_url),
                None if entry.replay_endpoint is None else _reachable(entry.replay_endpoint, backend_url),
                entry.topic,
            )
            for rank, entry in sorted(publishers.items())
            if entry.enable_kv_cache_events and entry.publisher == "zmq"
        ]
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise SourcesUnreadable(str(error)) from error


def says_emulated(page: bytes) -> bool:
    """Whether an answer of ``GET /version`` is an emulated engine's."""
    try:
        return msgspec.json.decode(page, type=_Version).emulated
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


def _events_address(endpoint: str, backend_url: str) -> Address:
    is_bound_there = "*" in endpoint or "::" in endpoint or not endpoint.startswith("tcp://")
    return Address(_reachable(endpoint, backend_url), may_bind=not is_bound_there)


def _reachable(endpoint: str, backend_url: str) -> str:
    """An endpoint with the backend's host where it says "any address"."""
    if not endpoint.startswith("tcp://"):
        return endpoint
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    if host in _OWN_HOSTS:
        name = urlsplit(backend_url).hostname or "127.0.0.1"
        host = f"[{name}]" if ":" in name else name
    return f"tcp://{host}:{int(port)}"
