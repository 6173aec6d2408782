"""The emulated engine over HTTP: shapes against recorded vLLM replies, caching, disconnects and faults."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from thunderagent.emulator.script import Script, parse_script
from thunderagent.emulator.server import RUNNER_OPTIONS, EmulatorConfig, EmulatorConfigError, create_app, driver_key
from thunderagent.emulator.timing import PRESETS

FIXTURES = Path(__file__).parent.parent / "fixtures" / "vllm"
CHAT = "/v1/chat/completions"
SCRIPT = parse_script(
    {
        "conversations": [
            {
                "match": "List the files",
                "turns": [
                    {"content": None, "tool_calls": [{"name": "bash", "arguments": {"command": "cat idum monu"}}]},
                    {"content": "All is done."},
                ],
            }
        ]
    }
)

Client = TestClient[Any, Any]
Start = Callable[..., Awaitable[Client]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts engines as the fixtures' server was: model tiny, blocks of 32, 8192 tokens; so fast that nothing waits.

    After the test the engine holds nothing and its books balance.
    """
    clients: list[Client] = []

    async def make(**options: Any) -> Client:
        options = {"models": ("tiny",), "block_size": 32, "kv_tokens": 8192, "speed": 1e6, **options}
        server = TestServer(create_app(EmulatorConfig(**options)))
        client: Client = TestClient(server)
        await server.start_server(**RUNNER_OPTIONS)
        clients.append(client)
        return client

    yield make
    for client in clients:
        engine = client.app[driver_key].engine
        for _ in range(20):
            if engine.idle:
                break
            await asyncio.sleep(0.01)
        assert engine.idle
        engine.check()
        await client.close()


def recorded(name: str) -> tuple[dict[str, Any], bytes]:
    """A recorded request and the body of its reply."""
    request = json.loads((FIXTURES / f"{name}.req.json").read_text())
    return request, (FIXTURES / f"{name}.body").read_bytes()


async def replay(client: Client, request: dict[str, Any]) -> tuple[int, bytes]:
    """Send a recorded request; status and body."""
    body = request["body"]
    raw = body if isinstance(body, str) else json.dumps(body)
    reply = await client.request(
        request["method"], request["path"], data=None if body is None else raw, headers=request["headers"]
    )
    return reply.status, await reply.read()


def shape(value: Any) -> Any:
    """A JSON value with its keys in order and without its values; what a model says does not matter."""
    if isinstance(value, dict):
        return [(key, shape(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    return value if value is None or isinstance(value, bool) else type(value).__name__


def events(body: bytes) -> list[tuple[str, Any]]:
    """Events of a stream: name (empty for none) and payload, ``[DONE]`` as text."""
    found = []
    for block in body.decode().strip().split("\n\n"):
        lines = block.split("\n")
        name = lines[0].removeprefix("event: ") if lines[0].startswith("event: ") else ""
        payload = lines[-1].removeprefix("data: ")
        found.append((name, payload if payload == "[DONE]" else json.loads(payload)))
    return found


def stream_shape(body: bytes) -> list[Any]:
    """Shapes of a stream's events, runs of one shape as one."""
    shapes: list[Any] = []
    for name, payload in events(body):
        one = (name, shape(payload))
        if not shapes or shapes[-1] != one:
            shapes.append(one)
    return shapes


@pytest.mark.parametrize(
    "name",
    [
        "anthropic_count_tokens",
        "anthropic_messages",
        "chat_nonstream",
        "chat_x_request_id",
        "completions",
        "get_v1_models",
        "reset_prefix_cache",
        "responses",
    ],
)
async def test_reply_has_the_recorded_shape(start: Start, name: str) -> None:
    """Every key of a reply, in vLLM's order, with vLLM's types and nulls."""
    request, expected = recorded(name)
    status, body = await replay(await start(), request)
    assert status == 200
    assert shape(json.loads(body)) == shape(json.loads(expected))


@pytest.mark.parametrize(
    "name",
    [
        "anthropic_messages_stream",
        "chat_stream",
        "chat_stream_usage",
        "chat_stream_usage_continuous",
        "completions_stream",
        "responses_stream",
    ],
)
async def test_stream_has_the_recorded_shape(start: Start, name: str) -> None:
    """The same kinds of events in the same order, each with vLLM's keys."""
    request, expected = recorded(name)
    status, body = await replay(await start(), request)
    assert status == 200
    assert stream_shape(body) == stream_shape(expected)
    assert body.rstrip(b"\n") + b"\n\n" == body


async def test_tool_call_has_the_recorded_shape(start: Start) -> None:
    """A scripted tool call looks as one of a real model."""
    client = await start(script=SCRIPT)
    request, expected = recorded("chat_tools_auto_regex_forced")
    _, body = await replay(client, request)
    assert shape(json.loads(body)) == shape(json.loads(expected))
    function = json.loads(body)["choices"][0]["message"]["tool_calls"][0]["function"]
    assert function == {"name": "bash", "arguments": '{"command": "cat idum monu"}'}


async def test_streamed_tool_call_has_the_recorded_shape(start: Start) -> None:
    """The call's header, then fragments of its arguments, then the reason."""
    client = await start(script=SCRIPT)
    request, expected = recorded("chat_tools_auto_regex_forced_stream")
    _, body = await replay(client, request)
    assert stream_shape(body) == stream_shape(expected)
    deltas = [chunk["choices"][0]["delta"] for _, chunk in events(body)[:-1] if chunk["choices"]]
    fragments = [call["function"].get("arguments", "") for delta in deltas for call in delta.get("tool_calls", ())]
    assert "".join(fragments) == '{"command": "cat idum monu"}'


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("err_bad_param", 400),
        ("err_context_overflow_max_tokens", 400),
        ("err_malformed_json", 400),
        ("err_missing_messages", 400),
        ("err_wrong_model", 404),
        ("anthropic_err_wrong_model", 404),
        ("err_method", 405),
        ("err_unknown_route", 404),
    ],
)
async def test_error_is_the_recorded_one(start: Start, name: str, status: int) -> None:
    """Errors are vLLM's to the byte."""
    request, expected = recorded(name)
    assert await replay(await start(), request) == (status, expected)


@pytest.mark.parametrize("stream", [False, True])
async def test_overlong_prompt_is_refused_before_any_event(start: Start, stream: bool) -> None:
    """A prompt past the model's length is a 400, streamed or not."""
    client = await start()
    messages = [{"role": "user", "content": "hello world " * 4000}]
    reply = await client.post(CHAT, json={"model": "tiny", "messages": messages, "stream": stream})
    expected = (FIXTURES / "err_context_overflow.body").read_bytes()
    assert (reply.status, await reply.read()) == (400, expected)


async def test_prompt_and_output_together_are_limited(start: Start) -> None:
    """A prompt that fits alone and not with the tokens asked for is a 400."""
    client = await start()
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x" * 4000}], "max_tokens": 8000}
    reply = await client.post(CHAT, json=body)
    assert reply.status == 400
    message = (await reply.json())["error"]["message"]
    assert "you requested 8000 output tokens and your prompt contains at least 193 input tokens" in message


async def test_unknown_fields_are_ignored(start: Start) -> None:
    """A program id or anything else in the body is no error."""
    client = await start()
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    reply = await client.post(CHAT, json={**body, "program_id": {"nested": [1]}, "extra_body": {"a": 1}})
    assert reply.status == 200


async def test_echoed_reply_hits_the_cache(start: Start) -> None:
    """The next turn of a conversation finds the whole of this turn's prompt and reply, rounded to blocks."""
    client = await start(block_size=16)
    messages: list[dict[str, Any]] = [{"role": "user", "content": "words " * 100}]
    body = {"model": "tiny", "max_tokens": 64, "messages": messages}
    first = await (await client.post(CHAT, json=body)).json()
    messages += [first["choices"][0]["message"], {"role": "user", "content": "go on"}]
    second = await (await client.post(CHAT, json=body)).json()
    computed = first["usage"]["total_tokens"] - 1
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == computed // 16 * 16


async def test_echoed_tool_call_hits_the_cache(start: Start) -> None:
    """Tool calls are rendered as they were generated."""
    client = await start(block_size=4, script=SCRIPT)
    messages: list[dict[str, Any]] = [{"role": "user", "content": "List the files"}]
    body = {"model": "tiny", "messages": messages}
    first = await (await client.post(CHAT, json=body)).json()
    call = first["choices"][0]["message"]["tool_calls"][0]
    messages += [first["choices"][0]["message"], {"role": "tool", "tool_call_id": call["id"], "content": "a.py"}]
    second = await (await client.post(CHAT, json=body)).json()
    assert second["choices"][0]["message"]["content"] == "All is done."
    assert second["choices"][0]["finish_reason"] == "stop"
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == (first["usage"]["total_tokens"] - 1) // 4 * 4


async def test_anthropic_tool_use_round_trip_hits_the_cache(start: Start) -> None:
    """Over the messages API the call comes back as an object and still meets its own tokens."""
    client = await start(block_size=4, script=SCRIPT)
    messages: list[dict[str, Any]] = [{"role": "user", "content": "List the files"}]
    body = {"model": "tiny", "max_tokens": 100, "messages": messages}
    first = await (await client.post("/v1/messages", json=body)).json()
    assert first["stop_reason"] == "tool_use"
    call = first["content"][0]
    assert (call["type"], call["input"]) == ("tool_use", {"command": "cat idum monu"})
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "a.py"}
    messages += [{"role": "assistant", "content": first["content"]}, {"role": "user", "content": [result]}]
    second = await (await client.post("/v1/messages", json=body)).json()
    usage = first["usage"]
    total = usage["input_tokens"] + usage["output_tokens"]
    assert second["content"] == [{"type": "text", "text": "All is done."}]
    assert second["usage"]["cache_read_input_tokens"] == (total - 1) // 4 * 4


async def test_responses_function_call_round_trip_hits_the_cache(start: Start) -> None:
    """Over the responses API the output items are the next input."""
    client = await start(block_size=4, script=SCRIPT)
    items: list[dict[str, Any]] = [{"role": "user", "content": "List the files"}]
    body = {"model": "tiny", "input": items}
    first = await (await client.post("/v1/responses", json=body)).json()
    call = first["output"][0]
    assert (call["type"], call["arguments"]) == ("function_call", '{"command": "cat idum monu"}')
    items += [call, {"type": "function_call_output", "call_id": call["call_id"], "output": "a.py"}]
    second = await (await client.post("/v1/responses", json=body)).json()
    assert second["output"][0]["content"][0]["text"] == "All is done."
    total = first["usage"]["total_tokens"]
    assert second["usage"]["input_tokens_details"]["cached_tokens"] == (total - 1) // 4 * 4


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_streamed_call_carries_its_arguments(start: Start, path: str) -> None:
    """Fragments of a streamed tool call add up under both block APIs."""
    client = await start(script=SCRIPT)
    prompt = "input" if path == "/v1/responses" else "messages"
    turns = [{"role": "user", "content": "List the files"}]
    body = {"model": "tiny", "stream": True, "max_tokens": 100, prompt: turns}
    reply = await client.post(path, json=body)
    pieces = ""
    for name, payload in events(await reply.read()):
        if name == "response.function_call_arguments.delta":
            pieces += payload["delta"]
        elif name == "content_block_delta":
            pieces += payload["delta"]["partial_json"]
    assert pieces == '{"command": "cat idum monu"}'


async def test_request_id_names_the_reply(start: Start) -> None:
    """``X-Request-Id`` first, then the body's ``request_id``."""
    client = await start()
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "request_id": "mine"}
    by_body = await (await client.post(CHAT, json=body)).json()
    by_header = await (await client.post(CHAT, json=body, headers={"X-Request-Id": "theirs"})).json()
    assert (by_body["id"], by_header["id"]) == ("chatcmpl-mine", "chatcmpl-theirs")


async def test_usage_details_can_be_left_out(start: Start) -> None:
    """As vLLM without --enable-prompt-tokens-details."""
    client = await start(prompt_tokens_details=False)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    usage = (await (await client.post(CHAT, json=body)).json())["usage"]
    assert usage["prompt_tokens_details"] is None


async def test_tokenize_and_back(start: Start) -> None:
    """Token ids lead back to the text."""
    client = await start()
    tokens = await (await client.post("/tokenize", json={"model": "tiny", "prompt": "hello world"})).json()
    assert (tokens["count"], tokens["max_model_len"]) == (3, 8192)
    text = await (await client.post("/detokenize", json={"model": "tiny", "tokens": tokens["tokens"]})).json()
    assert text == {"prompt": "hello world"}


async def test_version_says_that_it_is_emulated(start: Start) -> None:
    """Nobody can take it for vLLM."""
    version = await (await (await start()).get("/version")).json()
    assert version == {
        "version": "0.32.0-emulated",
        "emulated": True,
        "preset": "small-gpu",
        "timings": PRESETS["small-gpu"].title,
        "speed": 1e6,
    }


def samples(text: str) -> dict[str, float]:
    """Prometheus samples by name and labels."""
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


async def test_metrics_have_recorded_names_and_count(start: Start) -> None:
    """Every vLLM sample shown exists in vLLM's own page (but for the labels of the configuration), and counts."""
    client = await start(block_size=16)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "words " * 100}], "max_tokens": 10}
    for _ in range(2):
        await (await client.post(CHAT, json=body)).read()
    found = samples(await (await client.get("/metrics")).text())
    names = set(samples((FIXTURES / "get_metrics_load.body").read_text()))
    own = {name for name in found if name.startswith("vllm:") and "cache_config_info" not in name}
    assert {name for name in own if name not in names and "_tokens_bucket" not in name} == set()
    labels = '{engine="0",model_name="tiny"}'
    prompt = found[f"vllm:prompt_tokens_total{labels}"] / 2
    cached = (prompt - 1) // 16 * 16
    assert found[f"vllm:prefix_cache_queries_total{labels}"] == prompt * 2
    assert found[f"vllm:prefix_cache_hits_total{labels}"] == cached
    assert (
        found['vllm:prompt_tokens_by_source_total{engine="0",model_name="tiny",source="local_cache_hit"}'] == cached
    )
    assert found[f"vllm:generation_tokens_total{labels}"] == 20
    assert found['vllm:request_success_total{engine="0",finished_reason="length",model_name="tiny"}'] == 2
    assert found[f"vllm:request_prefill_kv_computed_tokens_sum{labels}"] == prompt * 2 - cached
    assert found[f"vllm:request_prefill_time_seconds_count{labels}"] == 2
    assert found[f"vllm:num_requests_running{labels}"] == found[f"vllm:kv_cache_usage_perc{labels}"] == 0
    config = next(name for name in found if name.startswith("vllm:cache_config_info"))
    assert 'block_size="16"' in config
    assert 'num_gpu_blocks="513"' in config


async def test_health_and_cache_reset(start: Start) -> None:
    """Health is an empty 200; a reset forgets prefixes."""
    client = await start(block_size=16)
    reply = await client.get("/health")
    assert (reply.status, await reply.read()) == (200, b"")
    body = {"model": "tiny", "messages": [{"role": "user", "content": "words " * 100}], "max_tokens": 1}
    cached = []
    for _ in range(2):
        usage = (await (await client.post(CHAT, json=body)).json())["usage"]
        cached.append(usage["prompt_tokens_details"]["cached_tokens"])
        assert await (await client.post("/reset_prefix_cache")).json() == {"success": True}
    assert cached == [0, 0]


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_leaves_frees_its_request(start: Start, stream: bool) -> None:
    """Within 0.1 s of a disconnect the engine has dropped the request, streamed or not."""
    client = await start(speed=1.0)
    engine = client.app[driver_key].engine
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4000, "stream": stream}
    async with aiohttp.ClientSession() as session:
        sending = asyncio.create_task(session.post(client.make_url(CHAT), json=body))
        for _ in range(100):
            if engine.running:
                break
            await asyncio.sleep(0.002)
        if stream:
            await (await sending).content.readany()
        else:
            sending.cancel()
    await asyncio.sleep(0.1)
    assert (engine.running, engine.waiting, engine.cache.usage_ratio) == (0, 0, 0.0)
    assert sum(engine.counters.success.values()) == 0


async def test_idle_connection_is_closed_after_the_keepalive_time(start: Start) -> None:
    """The server side of vLLM's 5 s, shortened."""
    server = TestServer(create_app(EmulatorConfig()))
    await server.start_server(**{**RUNNER_OPTIONS, "keepalive_timeout": 0.05})
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    assert await asyncio.wait_for(reader.read(), 2) == b""
    writer.close()
    await server.close()
    assert RUNNER_OPTIONS["keepalive_timeout"] == 5.0


async def test_many_streams_run_side_by_side(start: Start) -> None:
    """A hundred streams each get all of their tokens."""
    client = await start()

    async def one(number: int) -> int:
        body = {"model": "tiny", "messages": [{"role": "user", "content": f"{number}"}], "max_tokens": 20}
        reply = await client.post(CHAT, json={**body, "stream": True})
        return len(events(await reply.read()))

    assert await asyncio.gather(*(one(number) for number in range(100))) == [22] * 100


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_model_len": 9000}, "--max-model-len 9000 does not fit the KV cache of 8192 tokens"),
        ({"kv_tokens": 40}, "--kv-tokens 40 is too small"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], reason: str) -> None:
    """An engine that could not serve its longest request does not start."""
    with pytest.raises(EmulatorConfigError, match=reason):
        create_app(EmulatorConfig(**{"kv_tokens": 8192, "block_size": 32, **options}))


def test_default_length_fits_a_small_cache() -> None:
    """The preset's model length gives way to a smaller cache."""
    assert EmulatorConfig(kv_tokens=1000).model_len == 992
    assert EmulatorConfig(script=Script()).model_len == PRESETS["small-gpu"].max_model_len
