"""What a backend gets to see of a client's request: its bytes but for the program id, its headers but for secrets."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest
from router_harness import CHAT, Stack, chat

from thunderagent.backends import BackendConfig


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b'{"model":"emulated","program_id":"p","x": 1.50}', b'{"model":"emulated","x":1.50}'),
        (
            b'{"model":"emulated","extra_body":{"program_id":"p","k":[1, 2]}}',
            b'{"model":"emulated","extra_body":{"k":[1, 2]}}',
        ),
        (b'{"model":"emulated","extra_body":{"program_id":"p"}}', b'{"model":"emulated"}'),
        (
            b'{"model":"emulated", "extra_body": {"k":1} , "n":1}',
            b'{"model":"emulated", "extra_body": {"k":1} , "n":1}',
        ),
        (
            b'{"model":"emulated","messages":[{"content":"\\u00e9 \xc3\xa9 {\\"program_id\\": \\"q\\"}","x":1E2}],'
            b'"program_id":"p","big":12345678901234567890123}',
            b'{"model":"emulated","messages":[{"content":"\\u00e9 \xc3\xa9 {\\"program_id\\": \\"q\\"}","x":1E2}],'
            b'"big":12345678901234567890123}',
        ),
        (b'{"model":"emulated","program_id":null}', b'{"model":"emulated"}'),
    ],
)
async def test_body_arrives_without_program_id_only(stack: Stack, sent: bytes, expected: bytes) -> None:
    """program_id is taken from the top and from extra_body; values keep their own bytes, numbers included."""
    fake = await stack.fake()
    router = await stack.router(fake)
    assert (await router.post(CHAT, sent))[0] == 200
    assert fake.exchanges[0].body == expected


async def test_body_without_program_id_arrives_byte_for_byte(stack: Stack) -> None:
    """Nothing is written anew where nothing is removed: white space and duplicate keys stay."""
    sent = b'{ "model" :"emulated",\n "a": 1, "a": 2, "messages": [ ] }'
    fake = await stack.fake()
    router = await stack.router(fake)
    await router.post(CHAT, sent, headers={"X-Program-ID": "p"})
    assert fake.exchanges[0].body == sent
    assert set(await router.programs()) == {"p"}


async def test_program_is_named_to_the_backend(stack: Stack) -> None:
    """X-Session-ID carries the program's id, whatever the client's own header says."""
    fake = await stack.fake()
    router = await stack.router(fake)
    await router.post(CHAT, chat(program="p 1"), headers={"X-Session-ID": "mine"})
    await router.post(CHAT, chat(program="é%\U0001f600"))
    sent = [exchange.headers["x-session-id"] for exchange in fake.exchanges]
    assert sent == ["p 1", "%C3%A9%25%F0%9F%98%80"]
    assert set(await router.programs()) == {"p 1", "é%\U0001f600"}


async def test_clients_headers_arrive_but_for_those_of_its_connection(stack: Stack) -> None:
    """End-to-end fields pass; hop-by-hop ones and those that Connection names do not."""
    fake = await stack.fake()
    router = await stack.router(fake)
    headers = {
        "Connection": "keep-alive, X-Hop",
        "X-Hop": "1",
        "TE": "trailers",
        "X-Request-ID": "r",
        "User-Agent": "u",
    }
    await router.post(CHAT, chat(), headers=headers)
    sent = fake.exchanges[0].headers
    assert (sent["x-request-id"], sent["user-agent"], sent["accept-encoding"]) == ("r", "u", "identity")
    assert "x-hop" not in sent
    assert "te" not in sent
    assert sent["host"] == fake.url.removeprefix("http://")


SECRETS = ({"Authorization": "Bearer client"}, {"x-api-key": "client"})


@pytest.mark.parametrize("headers", SECRETS)
async def test_clients_credentials_arrive_where_the_router_asks_for_none(
    stack: Stack, headers: dict[str, str]
) -> None:
    """A backend that checks keys itself gets the client's."""
    fake = await stack.fake()
    router = await stack.router(fake)
    await router.post(CHAT, chat(), headers=headers)
    ((name, value),) = headers.items()
    assert fake.exchanges[0].headers[name.lower()] == value


@pytest.mark.parametrize("headers", SECRETS)
async def test_backend_key_replaces_the_clients_credentials(stack: Stack, headers: dict[str, str]) -> None:
    """A configured key is what the backend gets, and nothing of the client's."""
    fake = await stack.fake()
    router = await stack.router(BackendConfig(fake.url, api_key="inner"))
    for path in (CHAT, "/v1/embeddings"):
        await router.post(path, chat(), headers=headers)
    for exchange in fake.exchanges:
        assert exchange.headers["authorization"] == "Bearer inner"
        assert b"client" not in exchange.head


@pytest.mark.parametrize("options", [{"api_token": "secret"}, {"admin_token": "secret"}])
@pytest.mark.parametrize("headers", [{"Authorization": "Bearer secret"}, {"x-api-key": "secret"}])
async def test_tokens_of_the_router_never_arrive(
    stack: Stack, options: dict[str, Any], headers: dict[str, str]
) -> None:
    """The router's own tokens are for the router alone."""
    fake = await stack.fake()
    router = await stack.router(fake, **options)
    for path in (CHAT, "/v1/embeddings"):
        assert (await router.post(path, chat(), headers=headers))[0] == 200
    assert len(fake.exchanges) == 2
    assert not any(b"secret" in exchange.head for exchange in fake.exchanges)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_compressed_body_arrives_plain(stack: Stack, encoding: str) -> None:
    """A compressed request is unpacked once, at the edge, and its program known."""
    import zlib

    plain = json.dumps(chat("é" * 2000, "p")).encode()
    packed = gzip.compress(plain) if encoding == "gzip" else zlib.compress(plain)
    fake = await stack.fake()
    router = await stack.router(fake)
    status, _ = await router.post(CHAT, packed, headers={"Content-Encoding": encoding})
    assert status == 200
    assert json.loads(fake.exchanges[0].body) == chat("é" * 2000)
    assert "content-encoding" not in fake.exchanges[0].headers
    assert set(await router.programs()) == {"p"}


async def test_large_body_arrives_whole(stack: Stack) -> None:
    """Eight megabytes of prompt pass unchanged, without a blocked event loop."""
    text = "word" * (2 * 1024 * 1024)
    fake = await stack.fake()
    router = await stack.router(fake)
    turn = router.start_chat(text, "p")
    ticks = 0
    while not turn.done():
        await asyncio.sleep(0.001)
        ticks += 1
    assert (await turn)[0] == 200
    assert json.loads(fake.exchanges[0].body)["messages"][0]["content"] == text
    assert ticks > 3
