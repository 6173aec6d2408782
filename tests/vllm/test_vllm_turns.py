"""Turns of each API through the router to a real vLLM, and what the router learns of them."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from vllm_servers import CHAT, Router, Server, chat, events_of, until, words

from examples.vllm_cpu.server import BLOCK_TOKENS, MODEL_NAME

pytestmark = pytest.mark.vllm

TOOL = {
    "type": "function",
    "function": {"name": "bash", "parameters": {"type": "object", "properties": {"command": {"type": "string"}}}},
}
CALL = {
    "tools": [TOOL],
    "tool_choice": "auto",
    "max_tokens": 100,
    "ignore_eos": False,
    "structured_outputs": {
        "regex": r'<tool_call>\n\{"name": "bash", "arguments": \{"command": "ls"\}\}\n</tool_call>'
    },
}


def test_capacity_and_models_are_the_engine_s(router: Router, server: Server) -> None:
    """One block is reserved: so many tokens as it was started with are usable."""
    backend = router.backend()
    assert (backend["capacity_tokens"], backend["models"]) == (server.kv_tokens, [MODEL_NAME])
    assert backend["available"]
    assert [model["id"] for model in router.get("/v1/models")["data"]] == [MODEL_NAME]
    assert "emulated" not in httpx.get(f"{server.url}/version", trust_env=False).text


def test_second_turn_of_a_program_finds_its_prefix(router: Router, server: Server) -> None:
    """Usage as vLLM counts it reaches the client, the program's account and the metrics."""
    server.reset_cache()
    first = router.answer(CHAT, chat(words(150), "p"))
    usage = first["usage"]
    assert usage["prompt_tokens"] > 200
    assert router.get("/programs/p")["total_tokens"] == usage["total_tokens"]
    again = router.answer(
        CHAT,
        chat("", "p", messages=[{"role": "user", "content": words(150)}, {"role": "user", "content": "more"}]),
    )
    cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert usage["prompt_tokens"] - 2 * BLOCK_TOKENS <= cached <= usage["prompt_tokens"]
    assert router.metric("thunderagent_cached_tokens_total") == cached
    assert router.metric("thunderagent_prefix_lost_total") == 0
    seen = server.seen()
    assert seen.prefix_cache_hits is not None
    assert seen.prefix_cache_hits >= cached


def test_stream_is_vllm_s_own(router: Router, server: Server) -> None:
    """Event for event what the engine sends, ids and times aside; no usage where none was asked for."""
    body = chat("Count", "p", max_tokens=12)
    through = events_of(router.stream(CHAT, body))
    with httpx.stream("POST", server.url + CHAT, json={**body, "stream": True}, trust_env=False) as answer:
        direct = events_of(answer.iter_lines())
    for event in (*through, *direct):
        event.pop("id")
        event.pop("created")
    assert through == direct
    assert all(event.get("usage") is None for event in through)
    until(lambda: router.get("/programs/p")["step_count"] == 1)
    assert router.get("/programs/p")["total_tokens"] > 12


def test_stream_with_usage_ends_with_it(router: Router) -> None:
    """The last event has no choices; ``[DONE]`` comes after it."""
    lines = list(router.stream(CHAT, chat("Count", "p", stream_options={"include_usage": True})))
    events = events_of(iter(lines))
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 8
    assert [line for line in lines if line][-1] == "data: [DONE]"
    until(lambda: router.get("/programs/p")["total_tokens"] == events[-1]["usage"]["total_tokens"])


def test_tool_call_is_parsed(router: Router) -> None:
    """By the engine's parser, in a whole answer and in a stream."""
    (choice,) = router.answer(CHAT, chat("List", "p", **CALL))["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("bash", {"command": "ls"})
    assert choice["finish_reason"] == "tool_calls"
    deltas = [event["choices"][0] for event in events_of(router.stream(CHAT, chat("List", "p", **CALL)))]
    calls = [call for delta in deltas for call in delta["delta"].get("tool_calls") or []]
    assert calls[0]["function"]["name"] == "bash"
    assert json.loads("".join(call["function"].get("arguments") or "" for call in calls)) == {"command": "ls"}


def test_tool_results_go_into_the_next_prompt(router: Router) -> None:
    """A conversation as agents have it."""
    call = {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": '{"command": "ls"}'}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "You list files."},
        {"role": "user", "content": "List"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "README.md"},
    ]
    assert router.answer(CHAT, chat("", "p", messages=messages, tools=[TOOL]))["usage"]["prompt_tokens"] > 60


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "def f(", "max_tokens": 8}),
        ("/v1/responses", {"input": "Hello", "max_output_tokens": 8}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}),
    ],
)
def test_other_apis_are_relayed_and_counted(router: Router, path: str, body: dict[str, Any], is_stream: bool) -> None:
    """Each with its own form of usage; streams end as their API ends them."""
    full = {"model": MODEL_NAME, "temperature": 0, "ignore_eos": True, "program_id": "p", **body}
    if is_stream:
        lines = [line for line in router.stream(path, full) if line]
        last = json.loads(lines[-1][6:]) if lines[-1] != "data: [DONE]" else None
        ends = {"/v1/completions": None, "/v1/responses": "response.completed", "/v1/messages": "message_stop"}
        assert (last and last["type"]) == ends[path] or (
            path == "/v1/responses" and last["type"] == "response.incomplete"
        )
    else:
        assert router.answer(path, full)["usage"]
    until(lambda: router.get("/programs/p")["step_count"] == 1)
    assert router.get("/programs/p")["total_tokens"] >= 10
    if not (is_stream and path == "/v1/completions"):
        assert router.metric("thunderagent_completion_tokens_total") == 8


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (chat(words(6000), "p"), 400, "maximum context length"),
        (chat(words(6000), "p", stream=True), 400, "maximum context length"),
        (chat("x", "p", model="another"), 404, "does not exist"),
        (b'{"model": "tiny", ', 400, "JSON"),
        ({"model": MODEL_NAME, "program_id": "p"}, 400, "messages"),
        (chat("x", "p", max_tokens=-1), 400, "max_tokens"),
        (chat("x", "p", temperature="hot"), 400, "temperature"),
    ],
)
def test_wrong_requests_get_their_answer_and_cost_nothing(router: Router, body: Any, status: int, text: str) -> None:
    """The engine's own words where it was asked, OpenAI's form everywhere; the account is as before."""
    answer = router.post(CHAT, body)
    assert (answer.status_code, text in answer.text) == (status, True), answer.text
    assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}
    assert router.backend()["accounted_tokens"] == 0
    assert router.backend()["available"]


def test_client_that_leaves_ends_the_request_in_the_engine(router: Router, server: Server) -> None:
    """Within a second nothing runs there, and no token more is made."""
    with router.client.stream("POST", CHAT, json=chat("Go on", "p", max_tokens=4000, stream=True)) as answer:
        lines = answer.iter_lines()
        for _ in range(5):
            next(lines)
        until(lambda: server.seen().running == 1)  # the gauge lags
    until(lambda: server.seen().running == 0, 2.0)
    made = server.seen().generation_tokens
    until(lambda: router.get("/health")["turns_running"] == 0)
    assert server.seen().generation_tokens == made
    assert made is not None
    assert made < 100_000


def test_other_pages_are_routed(router: Router) -> None:
    """What is not scheduled."""
    counted = router.answer("/tokenize", {"model": MODEL_NAME, "prompt": "hello there"})
    assert counted["count"] == len(counted["tokens"])
    assert router.answer("/detokenize", {"model": MODEL_NAME, "tokens": counted["tokens"]})["prompt"] == "hello there"
