"""KV events for tests: messages as vLLM 0.32 sent them, and a publisher that behaves like vLLM's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio
from attrs import define, field

FRAMES = Path(__file__).parents[1] / "fixtures" / "vllm" / "kv_events"
BLOCK_TOKENS = 32


def recorded() -> list[tuple[int, bytes]]:
    """Sequence and payload of 28 messages in order: three sessions, a prompt sent twice, evictions."""
    found = []
    for path in sorted(FRAMES.glob("frame_*.hex")):
        topic, sequence, payload = (bytes.fromhex(line) for line in path.read_text().split("\n")[:3])
        assert topic == b"kv"
        found.append((int.from_bytes(sequence, "big"), payload))
    return found


def stored(*hashes: int, parent: int | None = None, session: str | None = None, **fields: Any) -> dict[str, Any]:
    """A BlockStored event with the fields that vLLM writes."""
    return {
        "type": "BlockStored",
        "block_hashes": list(hashes),
        "parent_block_hash": parent,
        "token_ids": list(range(BLOCK_TOKENS * len(hashes))),
        "block_size": BLOCK_TOKENS,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "group_idx": 0,
        **({"session_id": session} if session else {}),
        **fields,
    }


def removed(*hashes: int, **fields: Any) -> dict[str, Any]:
    """A BlockRemoved event."""
    return {"type": "BlockRemoved", "block_hashes": list(hashes), "medium": "GPU", "group_idx": 0, **fields}


CLEARED: dict[str, Any] = {"type": "AllBlocksCleared"}


def payload(*events: dict[str, Any], at: float = 1.0) -> bytes:
    """A message's payload, made at a time in seconds."""
    return msgspec.msgpack.encode([at, list(events), 0])


@define(eq=False)
class Publisher:
    """vLLM's publisher: numbers its messages from 0, keeps the last ones, repeats them on request."""

    context: zmq.asyncio.Context
    binds: bool = True
    connect_to: str = ""
    keeps: int = 1000
    topic: bytes = b"kv"
    has_replay: bool = True
    sequence: int = 0
    sent: list[tuple[int, bytes]] = field(factory=list)
    clock_seconds: float = 1.0
    """What its clock says."""
    replays: int = 0
    unanswered: int = 0
    """So many requests for a replay get the first message, at most, and no end."""
    endpoint: str = ""
    replay_endpoint: str | None = None
    _socket: Any = None
    _replay: Any = None
    _task: Any = None

    def start(self) -> Publisher:
        self._socket = self.context.socket(zmq.PUB)
        if self.binds:
            port = self._socket.bind_to_random_port("tcp://127.0.0.1")
            self.endpoint = f"tcp://*:{port}"
        else:
            self._socket.connect(self.connect_to)
            self.endpoint = self.connect_to
        if self.has_replay:
            self._replay = self.context.socket(zmq.ROUTER)
            self.replay_endpoint = f"tcp://*:{self._replay.bind_to_random_port('tcp://127.0.0.1')}"
            self._task = asyncio.ensure_future(self._serve())
        return self

    def page(self) -> dict[str, Any]:
        """What ``GET /kv_event_sources`` says of it."""
        return {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": self.endpoint,
            "replay_endpoint": self.replay_endpoint,
            "buffer_steps": self.keeps,
            "hwm": 100_000,
            "max_queue_size": 100_000,
            "topic": self.topic.decode(),
        }

    async def send(self, *events: dict[str, Any], lose: bool = False) -> None:
        """Publish one message; ``lose``: it never arrives, but can be had again."""
        await self.send_raw(payload(*events, at=self.clock_seconds), lose=lose)

    async def send_raw(self, body: bytes, *, lose: bool = False) -> None:
        """Likewise, any bytes."""
        if not lose:
            await self._socket.send_multipart([self.topic, self.sequence.to_bytes(8, "big"), body])
        self.sent = [*self.sent, (self.sequence, body)][-self.keeps :]
        self.sequence += 1

    def forget(self) -> None:
        """As if the buffer had run over."""
        self.sent = []

    def restart(self) -> None:
        """The engine ended and began anew on the same ports."""
        self.clock_seconds += 10.0
        self.sequence, self.sent = 0, []

    async def _serve(self) -> None:
        while True:
            client, _, start = await self._replay.recv_multipart()
            self.replays += 1
            for sequence, body in self.sent:
                if sequence % 100 == 0:
                    await asyncio.sleep(0)  # vLLM's is no part of the router's loop
                if sequence >= int.from_bytes(start, "big"):
                    message = [client, b"", self.topic, sequence.to_bytes(8, "big"), body]
                    await self._replay.send_multipart(message)
                    if self.unanswered:
                        break
            if self.unanswered:
                self.unanswered -= 1
                continue
            await self._replay.send_multipart([client, b"", b"", (-1).to_bytes(8, "big", signed=True), b""])

    def stop_replays(self) -> None:
        """Requests are taken, and nothing is sent for them any more."""
        if self._task is not None:
            self._task.cancel()

    def stop(self) -> None:
        self.stop_replays()
        for socket in (self._socket, self._replay):
            if socket is not None:
                socket.close(linger=0)
