"""The OpenAI SDK, unchanged but for its base URL, through the router to an engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from daemons import Daemon

openai = pytest.importorskip("openai", reason="needs the dev extra")

pytestmark = pytest.mark.e2e

TASK = [{"role": "user", "content": "Say something."}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "bash",
            "parameters": {"type": "object", "properties": {"command": {"type": "string"}}},
        },
    }
]


@pytest.fixture
def client(router: Daemon) -> Iterator[Any]:
    """The synchronous client; it repeats nothing by itself, so that a failure is seen."""
    with openai.OpenAI(base_url=f"{router.url}/v1", api_key="unused", max_retries=0, timeout=30) as made:
        yield made


def _of(program: str) -> dict[str, Any]:
    return {"extra_body": {"program_id": program}}


def _release(router: Daemon, *programs: str) -> list[bool]:
    return [router.post("/programs/release", {"program_id": name})["released"] for name in programs]


def test_plain_answer_is_complete_and_its_program_is_known(client: Any, router: Daemon) -> None:
    """Content, finish reason and usage; the id that went along in ``extra_body`` names the program."""
    answer = client.chat.completions.create(model="emulated", messages=TASK, max_tokens=5, **_of("sdk-plain"))
    program = router.get("/programs/sdk-plain")
    assert (answer.object, answer.model) == ("chat.completion", "emulated")
    assert answer.choices[0].message.content
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 5)
    assert (program["step_count"], program["total_tokens"]) == (1, answer.usage.total_tokens)
    assert _release(router, "sdk-plain") == [True]


def test_second_turn_of_a_conversation_finds_its_prefix_cached(client: Any, router: Daemon) -> None:
    """The point of it all: the second turn recomputes only what is new."""
    long_task = [{"role": "user", "content": "word " * 400}]
    first = client.chat.completions.create(model="emulated", messages=long_task, max_tokens=4, **_of("sdk-cached"))
    grown = [*long_task, {"role": "assistant", "content": first.choices[0].message.content}, *TASK]
    second = client.chat.completions.create(model="emulated", messages=grown, max_tokens=4, **_of("sdk-cached"))
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage.prompt_tokens_details.cached_tokens > 0.8 * first.usage.prompt_tokens
    assert _release(router, "sdk-cached") == [True]


def test_stream_gives_the_pieces_and_the_usage_that_was_asked_for(client: Any, router: Daemon) -> None:
    """Chunk by chunk to the end; without asking, no usage event is added to the client's stream."""
    asked, plain = (
        list(
            client.chat.completions.create(
                model="emulated", messages=TASK, max_tokens=6, stream=True, **_of("sdk-stream"), **options
            )
        )
        for options in ({"stream_options": {"include_usage": True}}, {})
    )
    texts = [
        "".join(chunk.choices[0].delta.content or "" for chunk in run if chunk.choices) for run in (asked, plain)
    ]
    assert texts[0]
    assert texts[0] == texts[1]
    assert [chunk.usage.completion_tokens for chunk in asked if chunk.usage is not None] == [6]
    assert [chunk for chunk in plain if chunk.usage is not None] == []
    assert [chunk.choices[0].finish_reason for chunk in plain][-1] == "length"
    assert _release(router, "sdk-stream") == [True]


def test_tool_call_and_its_result_make_a_two_turn_program(client: Any, router: Daemon) -> None:
    """The model calls a tool, the client runs it and sends the result; both turns are one program's."""
    messages: list[Any] = [{"role": "user", "content": "Please list the folder."}]
    first = client.chat.completions.create(model="emulated", messages=messages, tools=TOOLS, **_of("sdk-tools"))
    (call,) = first.choices[0].message.tool_calls
    messages += [first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": ". .."}]
    second = client.chat.completions.create(model="emulated", messages=messages, tools=TOOLS, **_of("sdk-tools"))
    assert (first.choices[0].finish_reason, call.function.name) == ("tool_calls", "bash")
    assert json.loads(call.function.arguments) == {"command": "ls -a"}
    assert second.choices[0].message.content == "There are two files."
    program = router.get("/programs/sdk-tools")
    assert (program["step_count"], program["conversations"]) == (2, 1)
    assert _release(router, "sdk-tools") == [True]


def test_streamed_tool_call_is_put_together(client: Any, router: Daemon) -> None:
    """The pieces of name and arguments arrive in order."""
    messages = [{"role": "user", "content": "Please list the folder."}]
    name = arguments = ""
    for chunk in client.chat.completions.create(
        model="emulated", messages=messages, tools=TOOLS, stream=True, **_of("sdk-tool-stream")
    ):
        for piece in chunk.choices[0].delta.tool_calls or []:
            name += piece.function.name or ""
            arguments += piece.function.arguments or ""
    assert (name, json.loads(arguments)) == ("bash", {"command": "ls -a"})
    assert _release(router, "sdk-tool-stream") == [True]


def test_other_apis_of_the_sdk_work_too(client: Any, router: Daemon) -> None:
    """Models, text completions and responses, the last one streamed to its own final event."""
    assert [model.id for model in client.models.list()] == ["emulated"]
    text = client.completions.create(model="emulated", prompt="Say", max_tokens=3, **_of("sdk-text"))
    with client.responses.create(
        model="emulated", input="Say", max_output_tokens=3, stream=True, **_of("sdk-text")
    ) as stream:
        kinds = [event.type for event in stream]
    assert text.usage.completion_tokens == 3
    assert (kinds[0], kinds[-1] in ("response.completed", "response.incomplete")) == ("response.created", True)
    assert router.get("/programs/sdk-text")["step_count"] == 2
    assert _release(router, "sdk-text") == [True]


def test_refusals_are_the_sdk_s_own_errors_with_the_router_s_codes(client: Any, router: Daemon) -> None:
    """The SDK chooses its class by the status; the code is the stable one. No state stays behind."""
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nosuch", messages=TASK, **_of("sdk-errors"))
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="emulated", messages=TASK, **_of("a" * 257))
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert (bad.value.code, bad.value.param) == ("invalid_program_id", "program_id")
    _release(router, "sdk-errors")


def test_client_that_times_out_frees_its_turn_at_the_router_and_the_engine(router: Daemon, engine: Daemon) -> None:
    """The SDK gives up after its timeout: the turn is cancelled all the way down, and its program stays usable."""
    impatient = openai.OpenAI(base_url=f"{router.url}/v1", api_key="unused", max_retries=0, timeout=0.3)
    with impatient, pytest.raises(openai.APITimeoutError):
        impatient.chat.completions.create(model="emulated", messages=TASK, max_tokens=4000, **_of("sdk-timeout"))
    line = json.loads(router.wait_line("turn.finished", "sdk-timeout"))
    program = router.get("/programs/sdk-timeout")
    assert (line["outcome"], program["turns_running"], program["status"]) == ("client_gone", 0, "acting")
    assert router.get("/health")["turns_running"] == 0
    again = router.chat("short", program_id="sdk-timeout", max_tokens=2)
    assert again["usage"]["completion_tokens"] == 2
    assert _release(router, "sdk-timeout") == [True]


async def test_many_programs_at_once_are_all_answered(router: Daemon) -> None:
    """16 programs of three streamed turns each, over one asynchronous client."""
    async with openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="unused", max_retries=0, timeout=60) as client:

        async def turn(program: str, number: int) -> int:
            messages = [{"role": "user", "content": f"{program} " * 20 * (number + 1)}]
            options = {"stream_options": {"include_usage": True}, "extra_body": {"program_id": program}}
            stream = await client.chat.completions.create(
                model="emulated", messages=messages, max_tokens=8, stream=True, **options
            )
            return sum([chunk.usage.completion_tokens async for chunk in stream if chunk.usage is not None])

        async def run(program: str) -> list[int]:
            return [await turn(program, number) for number in range(3)]

        names = [f"sdk-many-{number}" for number in range(16)]
        counts = await asyncio.gather(*map(run, names))
    steps = {name: program["step_count"] for name, program in router.get("/programs").items()}
    assert counts == [[8, 8, 8]] * 16
    assert steps == dict.fromkeys(names, 3)
    assert _release(router, *names) == [True] * 16


async def test_cancelled_stream_frees_its_turn(router: Daemon) -> None:
    """A task that is cancelled amid a stream, as agents do on their own time limits."""
    async with openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="unused", max_retries=0, timeout=30) as client:
        begun = asyncio.Event()

        async def read() -> None:
            stream = await client.chat.completions.create(
                model="emulated", messages=TASK, max_tokens=4000, stream=True, **_of("sdk-cancel")
            )
            async for _ in stream:
                begun.set()

        task = asyncio.create_task(read())
        await asyncio.wait_for(begun.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    line = json.loads(await asyncio.to_thread(router.wait_line, "turn.finished", "sdk-cancel"))
    assert line["outcome"] == "client_gone"
    assert router.get("/programs/sdk-cancel")["turns_running"] == 0
    assert _release(router, "sdk-cancel") == [True]
