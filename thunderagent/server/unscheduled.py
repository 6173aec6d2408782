"""What is routed by model but not scheduled (embeddings, tokenize, ...), and the union of the served models."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from aiohttp import web

from thunderagent.backends import WatchedBackend
from thunderagent.core.backend import Backend
from thunderagent.errors import BackendGone, BackendUnavailable, InvalidJson, ModelNotFound, ShuttingDown
from thunderagent.identity import IdentityRules, identify
from thunderagent.server.middleware import may_forward_credentials
from thunderagent.server.state import State, state_of
from thunderagent.upstream.client import ForwardFailed
from thunderagent.upstream.headers import request_headers
from thunderagent.upstream.relay import relay
from thunderagent.upstream.usage import Api

__all__ = ["UNSCHEDULED_PATHS", "handle_unscheduled", "list_models", "show_model"]

UNSCHEDULED_PATHS = (
    "/v1/embeddings",
    "/v1/rerank",
    "/v2/rerank",
    "/rerank",
    "/v1/score",
    "/score",
    "/pooling",
    "/classify",
    "/tokenize",
    "/detokenize",
    "/v1/messages/count_tokens",
)

_PAGE_SECONDS = 5.0


async def handle_unscheduled(request: web.Request) -> web.StreamResponse:
    """Send the request to the backend of its model with the fewest turns; the next one where that gives no answer."""
    state = state_of(request)
    if state.gateway.is_draining:
        raise ShuttingDown("the router is shutting down", retry_after_seconds=5.0)
    state.unscheduled_count += 1
    try:
        return await _forward(request, state)
    finally:
        state.unscheduled_count -= 1


async def _forward(request: web.Request, state: State) -> web.StreamResponse:
    body = await request.read()
    model: str | None = None
    try:
        submission = identify(request.path, request.headers, body, IdentityRules())
        model, body = submission.model, submission.body
    except InvalidJson:
        pass  # not JSON: the backend knows what to make of it
    failure: ForwardFailed | None = None
    for backend in _candidates(state, model):
        entry = state.pool.use(backend.id)
        if entry is None:
            continue  # removed while another one was tried
        try:
            headers = request_headers(
                request.headers,
                backend_key=entry.config.api_key,
                forward_credentials=may_forward_credentials(request),
            )
            upstream = await entry.client.open("POST", request.rel_url.raw_path_qs, body, headers)
            return (await relay(upstream, request, api=Api.OTHER)).response
        except ForwardFailed as error:
            failure = error
            if not entry.is_removed:
                state.metrics.forward_failures.labels(backend.id).inc()
            state.pool.note_failure(entry, error)
            if error.sent:
                break
        finally:
            state.pool.leave(entry)
    if failure is None:
        raise BackendUnavailable("no backend takes requests now", retry_after_seconds=5.0)
    raise BackendGone(f"the backend gave no answer: {failure}", retry_after_seconds=1.0)


def _candidates(state: State, model: str | None) -> list[Backend]:
    cluster = state.gateway.scheduler.cluster
    if not cluster.could_serve(model):
        raise ModelNotFound(cluster.unknown_model_text(model), param="model")
    return sorted(cluster.serving(model).backends, key=lambda backend: backend.turn_count)


async def list_models(request: web.Request) -> web.Response:
    """``GET /v1/models``: what the backends that take turns serve, each name once."""
    models = await _models(state_of(request))
    return _json({"object": "list", "data": list(models.values())})


async def show_model(request: web.Request) -> web.Response:
    """``GET /v1/models/{model}``."""
    name = request.match_info["model"]
    model = (await _models(state_of(request))).get(name)
    if model is None:
        raise ModelNotFound(f"The model `{name}` does not exist.", param="model")
    return _json(model)


async def _models(state: State) -> dict[str, dict[str, Any]]:
    available = {backend.id for backend in state.gateway.scheduler.cluster.backends}
    entries = [entry for backend, entry in state.pool.watched.items() if backend in available]
    if not entries:
        raise BackendUnavailable("no backend takes requests now", retry_after_seconds=5.0)
    pages = await asyncio.gather(*(_models_of(entry) for entry in entries))
    merged: dict[str, dict[str, Any]] = {}
    for page in pages:
        for model in page:
            merged.setdefault(model["id"], model)
    return merged


async def _models_of(entry: WatchedBackend) -> list[dict[str, Any]]:
    try:
        page = await entry.client.fetch("/v1/models", timeout_seconds=_PAGE_SECONDS)
        found = msgspec.json.decode(page.body)
    except (ForwardFailed, msgspec.DecodeError):
        return []
    data = found.get("data") if isinstance(found, dict) else None
    if not isinstance(data, list):
        return []
    return [model for model in data if isinstance(model, dict) and isinstance(model.get("id"), str)]


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
