"""What a client did wrong is told as OpenAI-shaped JSON with a stable code, and leaves no state behind."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest
from router_harness import CHAT, Stack, chat, words

DEEP = b'{"messages":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
RELEASE = "/programs/release"


def error_of(answer: dict[str, Any]) -> tuple[str, str | None]:
    """Code and param of an OpenAI-shaped error; its other fields must be there."""
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["message"]
    return answer["error"]["code"], answer["error"]["param"]


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b"{", "invalid_json", None),
        (b"hello", "invalid_json", None),
        (b"[]", "invalid_json", None),
        (b'"text"', "invalid_json", None),
        (b"\xff\xfe", "invalid_json", None),
        (b'{"a":1}{"b":2}', "invalid_json", None),
        (DEEP, "invalid_json", None),
        (json.dumps(chat(program="")).encode(), "invalid_program_id", "program_id"),
        (json.dumps(chat(program="x" * 257)).encode(), "invalid_program_id", "program_id"),
        (json.dumps(chat(program="a\nb")).encode(), "invalid_program_id", "program_id"),
        (json.dumps({**chat(), "program_id": 5}).encode(), "invalid_program_id", "program_id"),
        (json.dumps(chat(extra_body={"program_id": []})).encode(), "invalid_program_id", "extra_body.program_id"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, RELEASE])
async def test_bad_body_is_refused(stack: Stack, path: str, body: bytes, code: str, param: str | None) -> None:
    """Status 400, a code to act on, the field at fault; no program is born of it."""
    if path == RELEASE and param == "extra_body.program_id":
        code, param = "invalid_request", "program_id"
    router = await stack.router(await stack.fake())
    status, answer = await router.post(path, body)
    assert (status, *error_of(answer)) == (400, code, param)
    assert await router.programs() == {}


@pytest.mark.parametrize("body", [b"{}", b'{"program_id":null}'])
async def test_release_without_id_is_refused(stack: Stack, body: bytes) -> None:
    """Nothing is released by a request that names nothing."""
    router = await stack.router(await stack.fake())
    status, answer = await router.post(RELEASE, body)
    assert (status, *error_of(answer)) == (400, "invalid_request", "program_id")


async def test_release_of_unknown_program_is_no_error(stack: Stack) -> None:
    """Releases are sent best effort: one too many is told and harmless."""
    router = await stack.router(await stack.fake())
    assert await router.post(RELEASE, {"program_id": "x"}) == (200, {"program_id": "x", "released": False})


async def test_unknown_model_is_refused_with_the_served_names(stack: Stack) -> None:
    """As vLLM answers; the program that asked is not remembered, one that was known is."""
    router = await stack.router(await stack.engine(models=("b", "a")), await stack.engine(models=("c",)))
    status, answer = await router.post(CHAT, chat(program="p", model="z"))
    assert (status, *error_of(answer)) == (404, "model_not_found", "model")
    assert answer["error"]["message"] == "The model `z` does not exist. Valid aliases: a, b, c."
    assert await router.programs() == {}
    await router.chat(program="p", model="c")
    assert (await router.post(CHAT, chat(program="p", model="z")))[0] == 404
    assert (await router.programs())["p"]["step_count"] == 1


@pytest.mark.parametrize("path", [CHAT, RELEASE, "/v1/embeddings"])
async def test_body_over_the_limit_is_refused(stack: Stack, path: str) -> None:
    """A clean 413 that names the option, whether the length is announced, or found in unpacking."""
    router = await stack.router(await stack.fake(), max_body_bytes=2000)
    status, answer = await router.post(path, chat("x" * 2000))
    assert (status, *error_of(answer)) == (413, "body_too_large", None)
    assert "--max-body-bytes" in answer["error"]["message"]
    packed = gzip.compress(json.dumps(chat("x" * 1_000_000)).encode())
    assert len(packed) < 2000
    status, answer = await router.post(path, packed, headers={"Content-Encoding": "gzip"})
    assert (status, *error_of(answer)) == (413, "body_too_large", None)
    assert await router.programs() == {}


@pytest.mark.parametrize("body", [b"not gzip", gzip.compress(b'{"a":1}' * 9)[:-20]], ids=["no gzip", "cut off"])
async def test_damaged_compressed_body_is_refused(stack: Stack, body: bytes) -> None:
    """What cannot be unpacked is the client's mistake, not the router's."""
    router = await stack.router(await stack.fake())
    status, answer = await router.post(CHAT, body, headers={"Content-Encoding": "gzip"})
    assert status == 400
    assert error_of(answer)[0] in ("invalid_request", "invalid_json")


@pytest.mark.parametrize("path", ["/v2/chat", "/v1/chat/completions/", "/programs/a/b", "/v1/files"])
async def test_unknown_path_is_told_as_json(stack: Stack, path: str) -> None:
    """A 404 of the router in the shape of the API."""
    router = await stack.router(await stack.fake())
    status, answer = await router.post(path, chat())
    assert status in (404, 405)
    assert error_of(answer)[0] in ("not_found", "method_not_allowed")
    status, answer = await router.get("/nothing")
    assert (status, *error_of(answer)) == (404, "not_found", None)


@pytest.mark.parametrize(("path", "allowed"), [(CHAT, "POST"), (RELEASE, "DELETE,GET,HEAD,POST")])
async def test_wrong_method_is_told_with_those_that_work(stack: Stack, path: str, allowed: str) -> None:
    """A 405 with its Allow header."""
    router = await stack.router(await stack.fake())
    async with router.session.put(router.url + path, data=b"{}") as answer:
        assert (answer.status, *error_of(await answer.json())) == (405, "method_not_allowed", None)
        assert answer.headers["Allow"] == allowed


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"{", 400, "invalid_request_error"),
        (json.dumps({**chat(), "model": "z"}).encode(), 404, "not_found_error"),
        (json.dumps(chat("x" * 3000)).encode(), 413, "request_too_large"),
    ],
)
async def test_errors_of_messages_have_their_own_shape(stack: Stack, body: bytes, status: int, kind: str) -> None:
    """An Anthropic client finds the error where it looks for it."""
    router = await stack.router(await stack.fake(), max_body_bytes=2000)
    found, answer = await router.post("/v1/messages", body)
    assert (found, answer["type"], answer["error"]["type"]) == (status, "error", kind)
    assert answer["error"]["message"]
    assert answer["error"]["code"]


async def test_prompt_beyond_the_cache_is_the_engines_to_refuse(stack: Stack) -> None:
    """A prompt that can never fit is not held for ever: the engine says so best."""
    router = await stack.router(await stack.engine(kv_tokens=1024))
    status, answer = await router.post(CHAT, chat(words(3000), "p"))
    assert status == 400
    assert "maximum context length" in answer["error"]["message"]
    assert (await router.programs())["p"]["turns_running"] == 0


async def test_too_many_programs_are_refused(stack: Stack) -> None:
    """The table of programs is bounded; one-off turns and known programs go on."""
    router = await stack.router(await stack.fake(), scheduler={"max_programs": 1})
    await router.chat(program="a")
    status, answer = await router.post(CHAT, chat(program="b"))
    assert (status, *error_of(answer)) == (503, "too_many_programs", None)
    await router.chat(program="a")
    await router.chat()
    assert set(await router.programs()) == {"a"}


async def test_request_smuggling_is_rejected(stack: Stack) -> None:
    """A request with both framings, or a header with a bare line feed, never reaches a backend."""
    fake = await stack.fake()
    router = await stack.router(fake)
    client = await router.raw(b'{"model":"emulated"}', headers=["Transfer-Encoding: chunked"])
    assert (await client.head()).split()[1] == "400"
    client = await router.raw(b'{"model":"emulated"}', headers=["X-A: b\nX-Session-ID: evil"])
    await asyncio.wait_for(client.reader.read(), 5)
    assert fake.exchanges == [] or "evil" not in fake.exchanges[0].headers.get("x-session-id", "")
