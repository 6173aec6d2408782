"""Answers on their way through the router: streams and whole bodies of each API, and the usage read from them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from router_harness import CHAT, Stack, chat, until

from thunderagent.testing.fake_backend import LAST_CHUNK, STREAM_HEAD, Exchange, chunked, json_answer

FIXTURES = Path(__file__).parent.parent / "fixtures" / "vllm"
MESSAGES = {"model": "emulated", "max_tokens": 8, "messages": [{"role": "user", "content": "hi"}]}
BODIES = {
    "/v1/chat/completions": MESSAGES,
    "/v1/completions": {"model": "emulated", "max_tokens": 8, "prompt": "hi"},
    "/v1/responses": {"model": "emulated", "max_output_tokens": 8, "input": "hi"},
    "/v1/messages": MESSAGES,
}
ENDS = {
    "/v1/chat/completions": b"data: [DONE]",
    "/v1/completions": b"data: [DONE]",
    "/v1/responses": b"response.completed",
    "/v1/messages": b"message_stop",
}


def recorded(name: str) -> bytes:
    """A body recorded from vLLM."""
    return (FIXTURES / f"{name}.body").read_bytes()


def stream_of(body: bytes, *, end: bytes = LAST_CHUNK):
    """A backend that streams the body event by event."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD)
        for event in body.split(b"\n\n"):
            if event:
                await exchange.send(chunked(event + b"\n\n"))
        await exchange.send(end)

    return script


@pytest.mark.parametrize("path", BODIES)
async def test_each_api_streams_to_its_own_end(stack: Stack, path: str) -> None:
    """A stream of each API ends as that API ends, cleanly, and its usage is accounted to the program."""
    router = await stack.router(await stack.engine())
    body = {**BODIES[path], "stream": True, "program_id": "p"}
    if path.endswith("/completions"):
        body["stream_options"] = {"include_usage": True}
    client = await router.raw(body, path)
    assert "text/event-stream" in await client.head()
    received, is_whole = await client.rest()
    assert is_whole
    assert ENDS[path] in received.strip().split(b"\n\n")[-1]
    await until(lambda: not router.gateway.tickets)
    program = (await router.programs())["p"]
    completion_tokens = await router.metric("thunderagent_completion_tokens_total")
    prompt_tokens = await router.metric("thunderagent_prompt_tokens_total")
    assert completion_tokens == 8
    assert program["total_tokens"] == prompt_tokens + 8
    assert (program["step_count"], program["status"], program["state"]) == (1, "acting", "active")


@pytest.mark.parametrize("path", BODIES)
async def test_each_api_answers_whole(stack: Stack, path: str) -> None:
    """An answer that is not streamed passes with its usage."""
    router = await stack.router(await stack.engine())
    status, answer = await router.post(path, {**BODIES[path], "program_id": "p"})
    usage = answer["usage"]
    total_tokens = usage.get("total_tokens") or usage["input_tokens"] + usage["output_tokens"]
    if path == "/v1/messages":
        total_tokens += usage.get("cache_read_input_tokens") or 0
        total_tokens += usage.get("cache_creation_input_tokens") or 0
    assert status == 200
    assert (await router.programs())["p"]["total_tokens"] == total_tokens


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/chat/completions", "chat_stream_usage"),
        ("/v1/completions", "completions_stream"),
        ("/v1/responses", "responses_stream"),
        ("/v1/messages", "anthropic_messages_stream"),
    ],
)
async def test_recorded_stream_arrives_byte_for_byte(stack: Stack, path: str, name: str) -> None:
    """What vLLM sent is what the client gets."""
    body = recorded(name)
    router = await stack.router(await stack.fake(stream_of(body)))
    client = await router.raw({**BODIES[path], "stream": True}, path)
    await client.head()
    assert await client.rest() == (body, True)


async def test_stream_passes_chunk_by_chunk(stack: Stack) -> None:
    """Each event reaches the client before the backend sends the next."""
    received = asyncio.Event()
    events = [b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % index for index in range(4)]

    async def one_at_a_time(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD)
        for event in [*events, b"data: [DONE]\n\n"]:
            received.clear()
            await exchange.send(chunked(event))
            await asyncio.wait_for(received.wait(), 5)
        await exchange.send(LAST_CHUNK)

    router = await stack.router(await stack.fake(one_at_a_time))
    client = await router.raw(chat(stream=True))
    await client.head()
    chunks = []
    async for chunk in client.chunks():
        chunks.append(chunk)
        received.set()
    assert chunks == [*events, b"data: [DONE]\n\n"]


async def test_path_without_v1_reaches_the_backend_with_it(stack: Stack) -> None:
    """Clients whose base URL lacks /v1 work; the query is kept."""
    fake = await stack.fake()
    router = await stack.router(fake)
    status, _ = await router.post("/chat/completions?a=%20b", chat())
    assert (status, fake.exchanges[0].target) == (200, "/v1/chat/completions?a=%20b")


async def test_answer_without_usage_leaves_an_estimate(stack: Stack) -> None:
    """A stream that gives no usage ends its turn all the same; its program is charged by estimate."""
    body = recorded("chat_stream")
    assert b'"usage"' not in body
    router = await stack.router(await stack.fake(stream_of(body)))
    client = await router.raw(chat(program="p", stream=True))
    await client.head()
    assert (await client.rest())[1]
    await until(lambda: not router.gateway.tickets)
    program = (await router.programs())["p"]
    assert (program["status"], program["turns_running"], program["step_count"]) == ("acting", 0, 1)
    assert program["footprint_tokens"] > 0
    assert await router.metric("thunderagent_turns_total", outcome="completed") == 1


async def test_whole_answer_without_usage_completes(stack: Stack) -> None:
    """Malformed usage degrades to an estimate, never to an error."""
    answer = json_answer(b'{"choices":[],"usage":{"prompt_tokens":"many"}}')
    router = await stack.router(await stack.fake(answer))
    await router.chat(program="p")
    program = (await router.programs())["p"]
    assert (program["status"], program["step_count"]) == ("acting", 1)


async def test_injected_usage_is_accounted_and_not_shown(stack: Stack) -> None:
    """With --inject-usage the backend is asked for usage and the extra event is taken out on the way."""
    router = await stack.router(await stack.engine(), inject_usage=True)
    client = await router.raw(chat(program="p", stream=True))
    await client.head()
    received, is_whole = await client.rest()
    assert is_whole
    assert received.endswith(b"data: [DONE]\n\n")
    events = [json.loads(line[6:]) for line in received.split(b"\n\n") if line.startswith(b"data: {")]
    assert all(event["choices"] for event in events)
    await until(lambda: not router.gateway.tickets)
    prompt_tokens = await router.metric("thunderagent_prompt_tokens_total")
    assert (await router.programs())["p"]["total_tokens"] == prompt_tokens + 4 > 4


async def test_usage_asked_by_the_client_is_shown(stack: Stack) -> None:
    """--inject-usage leaves alone a stream whose client asked for usage itself."""
    router = await stack.router(await stack.engine(), inject_usage=True)
    client = await router.raw(chat(stream=True, stream_options={"include_usage": True}))
    await client.head()
    received, _ = await client.rest()
    assert b'"choices":[],"usage"' in received


async def test_backend_error_inside_a_stream_is_counted_as_one(stack: Stack) -> None:
    """vLLM's own error event under a 200 passes unchanged and counts as a backend error."""
    body = recorded("engine_dead_innocent_stream")
    router = await stack.router(await stack.fake(stream_of(body)))
    client = await router.raw(chat(program="p", stream=True))
    await client.head()
    assert await client.rest() == (body, True)
    await until(lambda: not router.gateway.tickets)
    assert await router.metric("thunderagent_turns_total", outcome="backend_error") == 1
    assert (await router.programs())["p"]["status"] == "acting"


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ("400 Bad Request", "backend_rejected"),
        ("429 Too Many Requests", "backend_rejected"),
        ("500 Internal Server Error", "backend_error"),
        ("503 Service Unavailable", "backend_error"),
    ],
)
async def test_error_of_the_backend_passes_untouched(stack: Stack, status: str, outcome: str) -> None:
    """Status, header and body of a backend's error are the client's; no error makes the backend failed."""
    body = b'{"error":{"message":"no","type":"x","param":null,"code":1}}'
    fake = await stack.fake(json_answer(body, status, "Retry-After: 7"))
    router = await stack.router(fake, health_failures=1)
    for _ in range(3):
        async with router.session.post(router.url + CHAT, json=chat(program="p")) as answer:
            assert (answer.status, await answer.read()) == (int(status[:3]), body)
            assert answer.headers["Retry-After"] == "7"
    assert await router.metric("thunderagent_turns_total", outcome=outcome) == 3
    assert (await router.get("/health"))[1]["per_backend"][fake.url]["healthy"] is True
