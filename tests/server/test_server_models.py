"""Models: their union, one by name, turns to backends that serve them, and requests that are routed unscheduled."""

from __future__ import annotations

import json

import pytest
from router_harness import CHAT, Stack, chat, until

from thunderagent.testing.fake_backend import Exchange, json_answer


async def test_models_are_the_union_of_the_backends(stack: Stack) -> None:
    """Each name once, as its backend describes it; a backend that is down is left out."""
    first, second = await stack.engine(models=("a", "b")), await stack.engine(models=("b", "org/c"))
    router = await stack.router(first, second)
    status, listed = await router.get("/v1/models")
    assert (status, listed["object"]) == (200, "list")
    assert [model["id"] for model in listed["data"]] == ["a", "b", "org/c"]
    assert listed["data"][0]["max_model_len"] == 8192
    await second.kill()
    await until(lambda: len(router.gateway.scheduler.cluster.backends) == 1)
    assert [model["id"] for model in (await router.get("/v1/models"))[1]["data"]] == ["a", "b"]


async def test_one_model_is_shown_by_name(stack: Stack) -> None:
    """Names hold slashes; an unknown one is a 404."""
    router = await stack.router(await stack.engine(models=("org/c",)))
    assert (await router.get("/v1/models/org/c"))[1]["id"] == "org/c"
    status, answer = await router.get("/v1/models/z")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


async def test_models_without_backends_are_a_503(stack: Stack) -> None:
    """An empty list would tell clients that nothing is served."""
    engine = await stack.engine()
    router = await stack.router(engine)
    await engine.kill()
    await until(lambda: not router.gateway.scheduler.cluster.backends)
    status, answer = await router.get("/v1/models")
    assert (status, answer["error"]["code"]) == (503, "no_backend")


async def test_turns_go_where_their_model_is(stack: Stack) -> None:
    """One program may ask for several models."""
    first, second = await stack.engine(models=("a",)), await stack.engine(models=("b",))
    router = await stack.router(first, second)
    for model in "abab":
        assert (await router.chat(program="p", model=model))["model"] == model
    assert (await router.programs())["p"]["step_count"] == 4


@pytest.mark.parametrize(
    "path", ["/v1/embeddings", "/v1/rerank", "/v1/score", "/tokenize", "/detokenize", "/v1/messages/count_tokens"]
)
async def test_unscheduled_request_goes_to_its_models_backend(stack: Stack, path: str) -> None:
    """Status, header and bytes pass both ways; no program is made, its id is taken out all the same."""
    answer = json_answer(b'{"object":"list", "data":[]}', "201 Created", "X-Own: 1")
    first, second = await stack.fake(answer, models=("a",)), await stack.fake(answer, models=("b",))
    router = await stack.router(first, second)
    body = {"model": "b", "input": "x", "program_id": "p"}
    async with router.session.post(f"{router.url}{path}?q=%20", json=body) as found:
        assert (found.status, await found.read()) == (201, b'{"object":"list", "data":[]}')
        assert found.headers["X-Own"] == "1"
    assert first.exchanges == []
    assert second.exchanges[0].target == f"{path}?q=%20"
    assert json.loads(second.exchanges[0].body) == {"model": "b", "input": "x"}
    assert await router.programs() == {}
    status, refused = await router.post(path, {"model": "z"})
    error = refused["error"]
    assert (status, error["code"]) == (404, "model_not_found")


async def test_unscheduled_request_is_passed_over_to_another_backend(stack: Stack) -> None:
    """A refused connection is no answer; a request that a backend broke off under is not sent on."""

    async def hang_up(exchange: Exchange) -> None:
        pass

    dead, good = await stack.fake(), await stack.fake()
    router = await stack.router(dead, good, metrics_interval_seconds=60.0)
    await dead.kill()
    assert (await router.post("/v1/embeddings", chat()))[0] == 200
    good.script = hang_up
    status, answer = await router.post("/v1/embeddings", chat())
    assert (status, answer["error"]["code"]) == (502, "backend_unavailable")


async def test_tokenize_works_through_the_router(stack: Stack) -> None:
    """The real thing once: an engine's own count."""
    router = await stack.router(await stack.engine())
    status, answer = await router.post("/tokenize", {"model": "emulated", "prompt": "12345678"})
    assert (status, answer["count"]) == (200, 2)
    status, answer = await router.post(
        "/v1/messages/count_tokens", {"model": "emulated", "messages": [{"role": "user", "content": "hi"}]}
    )
    assert (status, answer["input_tokens"] > 0) == (200, True)


async def test_backend_that_does_not_list_models_is_asked_for_any(stack: Stack) -> None:
    """Unknown models are no reason to refuse."""
    router = await stack.router(await stack.fake(models=None))
    assert (await router.post(CHAT, chat(model="whatever")))[0] == 200
