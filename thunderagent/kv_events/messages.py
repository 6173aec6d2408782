"""vLLM's KV events as they come over ZMQ (``vllm/distributed/kv_events.py``), read without their token ids."""

from __future__ import annotations

import msgspec

__all__ = [
    "AllBlocksCleared",
    "BlockHash",
    "BlockRemoved",
    "BlockStored",
    "KvEvent",
    "Unreadable",
    "read_batch",
    "sent_at",
]

BlockHash = int | bytes

_DEVICE = ("GPU", None)
"""Blocks on other media are copies that an engine offloaded."""


class BlockStored(msgspec.Struct, tag=True):
    """Full blocks that a request computed, behind one another from ``parent_block_hash`` (None: from the start).

    ``session_id`` is the session of the request that stored them. Where a client asks for it (``vllm_xargs`` with
    ``kv_cache_report_mode=full``), the blocks that its request found are reported in the same form, from the start.
    """

    block_hashes: list[BlockHash]
    parent_block_hash: BlockHash | None
    block_size: int
    medium: str | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    session_id: str | None = None


class BlockRemoved(msgspec.Struct, tag=True):
    """Blocks that were evicted. The same hash is stored and removed once per copy of it."""

    block_hashes: list[BlockHash]
    medium: str | None = None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, tag=True):
    """The prefix cache was reset. Comes with the engine's next step, before what that one stored."""


KvEvent = BlockStored | BlockRemoved | AllBlocksCleared


class _Batch(msgspec.Struct, array_like=True):
    time: float
    events: list[KvEvent]


class _Stamp(msgspec.Struct, array_like=True):
    time: float


_decoder = msgspec.msgpack.Decoder(_Batch)
_stamp_decoder = msgspec.msgpack.Decoder(_Stamp)


class Unreadable(Exception):
    """A message is not of the known form; says what is wrong with it."""


def read_batch(payload: bytes) -> list[KvEvent]:
    """The events of one message, those of other media left out.

    Raises:
        Unreadable: an engine that writes another form, as older ones do, whose events name no session either.
    """
    try:
        batch = _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unreadable(str(error)) from error
    return [event for event in batch.events if isinstance(event, AllBlocksCleared) or event.medium in _DEVICE]


def sent_at(payload: bytes) -> float | None:
    """When the engine made a message, in seconds by its wall clock; None where it does not say."""
    try:
        return _stamp_decoder.decode(payload).time
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
