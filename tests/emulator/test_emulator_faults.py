"""Faults on demand: their syntax, how they are used up, and what a client sees."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from thunderagent.emulator.faults import Fault, FaultBoard, FaultError, FaultKind, fault_from_mapping, parse_fault
from thunderagent.emulator.server import EmulatorConfig, create_app, driver_key

FIXTURES = Path(__file__).parent.parent / "fixtures" / "vllm"
CHAT = "/v1/chat/completions"
BODY = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 6,
    "stream_options": {"include_usage": True},
}
STREAMED = {**BODY, "stream": True}

Client = TestClient[Any, Any]


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """A fast engine without faults; it must be idle in the end."""
    client: Client = TestClient(TestServer(create_app(EmulatorConfig(models=("tiny",), speed=1e6))))
    await client.start_server()
    yield client
    engine = client.app[driver_key].engine
    assert engine.idle
    engine.check()
    await client.close()


async def set_fault(client: Client, **fields: Any) -> None:
    """Set a fault over HTTP."""
    reply = await client.post("/fault", json=fields)
    assert reply.status == 200, await reply.text()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("no_usage", Fault(FaultKind.NO_USAGE)),
        ("status:status=503,requests=2", Fault(FaultKind.STATUS, requests=2, status=503)),
        ("stall:after_chunks=3,seconds=0.5", Fault(FaultKind.STALL, after_chunks=3, seconds=0.5)),
    ],
)
def test_fault_is_parsed(text: str, fault: Fault) -> None:
    """The command line's syntax."""
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("explode", "unknown fault kind 'explode'; known are refuse, status"),
        ("cut:3", "expected FIELD=VALUE, got '3'"),
        ("cut:seconds=3", "fault cut takes after_chunks, requests; not seconds"),
        ("cut:after_chunks=x", "fault field after_chunks takes a number, got 'x'"),
        ("status:status=200", "fault field status can't be 200"),
        ("refuse:requests=0", "fault field requests can't be 0"),
    ],
)
def test_bad_fault_is_explained(text: str, reason: str) -> None:
    """An error says which fault and why."""
    with pytest.raises(FaultError) as caught:
        parse_fault(text)
    assert reason in str(caught.value)


def test_true_is_no_number() -> None:
    """JSON's true is not taken for 1."""
    with pytest.raises(FaultError, match="takes a number"):
        fault_from_mapping({"kind": "refuse", "requests": True})


def test_faults_are_used_up_in_order() -> None:
    """Of one kind the first set goes first; other kinds add to it; health checks use their own up."""
    first, second = Fault(FaultKind.STATUS, requests=2, status=500), Fault(FaultKind.STATUS, status=503)
    board = FaultBoard((first, Fault(FaultKind.NO_USAGE, requests=1), second, Fault(FaultKind.UNHEALTHY, requests=1)))
    taken = [
        {
            kind.value: fault.status if kind is FaultKind.STATUS else None
            for kind, fault in board.take().by_kind.items()
        }
        for _ in range(4)
    ]
    assert taken == [{"status": 500, "no_usage": None}, {"status": 500}, {"status": 503}, {"status": 503}]
    assert [board.healthy(), board.healthy()] == [False, True]
    assert board.faults == (second,)


async def test_faults_are_set_listed_and_cleared(client: Client) -> None:
    """The /fault endpoint."""
    await set_fault(client, kind="cut", after_chunks=2, requests=1)
    listed = await (await client.get("/fault")).json()
    cut = {"kind": "cut", "requests": 1, "status": 500, "after_chunks": 2, "seconds": None}
    assert listed == {"faults": [cut]}
    assert await (await client.delete("/fault")).json() == {"faults": []}
    reply = await client.post("/fault", json={"kind": "explode"})
    assert reply.status == 400
    assert "unknown fault kind" in (await reply.json())["error"]["message"]


@pytest.mark.parametrize("status", [500, 503])
async def test_status_fault_answers_the_next_requests(client: Client, status: int) -> None:
    """As many errors as asked, then all is well."""
    await set_fault(client, kind="status", status=status, requests=2)
    statuses = [(await client.post(CHAT, json=BODY)).status for _ in range(3)]
    assert statuses == [status, status, 200]


async def test_refused_request_gets_no_answer(client: Client) -> None:
    """The connection is reset before any byte."""
    await set_fault(client, kind="refuse", requests=2)
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.post(client.make_url(CHAT), json=BODY)
    await client.delete("/fault")


async def read_broken(client: Client, body: dict[str, Any]) -> bytes:
    """The bytes of a reply that breaks off."""
    got: list[bytes] = []

    async def read(reply: aiohttp.ClientResponse) -> None:
        while piece := await reply.content.readany():
            got.append(piece)

    async with client.post(CHAT, json=body) as reply:
        assert reply.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await read(reply)
    return b"".join(got)


@pytest.mark.parametrize("chunks", [0, 1, 3])
async def test_cut_stream_breaks_off_after_its_chunks(client: Client, chunks: int) -> None:
    """The body ends without the last chunk of its transfer, so a client sees an error and no [DONE]."""
    await set_fault(client, kind="cut", after_chunks=chunks, requests=1)
    got = await read_broken(client, STREAMED)
    assert got.count(b"\n\n") == chunks
    assert b"[DONE]" not in got


async def test_cut_reply_breaks_off_half_way(client: Client) -> None:
    """A reply that is not streamed ends before its Content-Length."""
    await set_fault(client, kind="cut", requests=1)
    assert (await read_broken(client, BODY)).startswith(b'{"id":"chatcmpl-')


async def test_stalled_stream_goes_on_later(client: Client) -> None:
    """Nothing comes for a while after the chunks asked for, then the rest does."""
    await set_fault(client, kind="stall", after_chunks=2, seconds=0.1, requests=1)
    loop = asyncio.get_running_loop()
    async with client.post(CHAT, json=STREAMED) as reply:
        first = b""
        while first.count(b"\n\n") < 2:
            first += await reply.content.readany()
        stalled_at = loop.time()
        rest = await reply.read()
    assert first.count(b"\n\n") == 2
    assert loop.time() - stalled_at > 0.05
    assert rest.endswith(b"data: [DONE]\n\n")


async def test_endless_stall_ends_with_the_client(client: Client) -> None:
    """A stall without a time holds until the client leaves."""
    await set_fault(client, kind="stall", requests=1)
    with pytest.raises(asyncio.TimeoutError):
        await client.post(CHAT, json=BODY, timeout=aiohttp.ClientTimeout(total=0.1))
    reply = await client.post(CHAT, json=BODY)
    assert reply.status == 200


async def test_usage_can_be_missing(client: Client) -> None:
    """Streamed or not, the reply is complete but for its usage."""
    await set_fault(client, kind="no_usage", requests=2)
    streamed = await (await client.post(CHAT, json=STREAMED)).text()
    assert '"usage"' not in streamed
    assert streamed.endswith("data: [DONE]\n\n")
    assert (await (await client.post(CHAT, json=BODY)).json())["usage"] is None


async def test_dying_engine_ends_streams_as_recorded(client: Client) -> None:
    """An error event and [DONE] under a 200, the bytes of vLLM's own death."""
    await set_fault(client, kind="engine_death", after_chunks=3, requests=1)
    body = await (await client.post(CHAT, json=STREAMED)).read()
    recorded = (FIXTURES / "engine_dead_innocent_stream.body").read_bytes()
    assert body.count(b"\n\n") == 5
    assert body.split(b"\n\n")[3:] == recorded.split(b"\n\n")[-3:]


async def test_dying_engine_fails_other_replies_as_recorded(client: Client) -> None:
    """Not streamed, the same is a 500."""
    await set_fault(client, kind="engine_death", requests=1)
    reply = await client.post(CHAT, json=BODY)
    expected = json.loads((FIXTURES / "engine_dead_500.body").read_bytes())
    assert (reply.status, await reply.json()) == (500, expected)


async def test_unhealthy_engine_still_answers(client: Client) -> None:
    """Health fails, inference does not."""
    await set_fault(client, kind="unhealthy")
    assert (await client.get("/health")).status == 503
    assert (await client.post(CHAT, json=BODY)).status == 200
    await client.delete("/fault")
    assert (await client.get("/health")).status == 200


@pytest.mark.parametrize("body", [BODY, STREAMED], ids=["whole", "streamed"])
async def test_first_byte_can_be_delayed(client: Client, body: dict[str, Any]) -> None:
    """Headers included."""
    await set_fault(client, kind="delay", seconds=0.1, requests=1)
    loop = asyncio.get_running_loop()
    sent_at = loop.time()
    async with client.post(CHAT, json=body) as reply:
        assert loop.time() - sent_at > 0.09
        await reply.read()
