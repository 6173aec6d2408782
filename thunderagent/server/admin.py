"""What operators and clients ask about: programs, backends, health, metrics, profiles, the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from importlib.resources import files
from itertools import islice
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from thunderagent.backends import BACKEND_TYPES, BackendConfig, WatchedBackend
from thunderagent.core import events
from thunderagent.core.backend import Backend
from thunderagent.core.cluster import Cluster
from thunderagent.core.ids import ProgramId
from thunderagent.core.invariants import violations
from thunderagent.core.program import Program
from thunderagent.errors import BadRequest, InvalidJson, NotFound, ProfilingOff
from thunderagent.identity import check_program_id
from thunderagent.server.compat import health_json, metrics_json, per_backend_json, program_json
from thunderagent.server.middleware import check_admin
from thunderagent.server.state import State, state_of

__all__ = ["routes"]

_REMOVE_SECONDS = 30.0
_SLICE = 200
"""Programs that are written in one go: 2 ms on the machine of docs/benchmarks.md."""


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")


async def _body_object(request: web.Request) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(await request.read())
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidJson(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidJson("the body is not a JSON object")
    return value


async def _json_in_slices(programs: Iterable[ProgramId], show: Callable[[ProgramId], Any]) -> web.Response:
    """An object with what ``show`` says of each program, made a slice at a time; other requests go on in between.

    A program of which it says None is left out: it may have gone meanwhile.
    """
    ids, parts = iter(programs), []
    while chosen := tuple(islice(ids, _SLICE)):
        shown = {program: value for program in chosen if (value := show(program)) is not None}
        if shown:
            parts.append(msgspec.json.encode(shown)[1:-1])
        await asyncio.sleep(0)
    return web.Response(body=b"{%s}" % b",".join(parts), content_type="application/json")


# Programs


async def release_program(request: web.Request) -> web.Response:
    """``POST /programs/release`` {"program_id": "x"}; an unknown id is no error."""
    body = await _body_object(request)
    if body.get("program_id") is None:
        raise BadRequest("program_id is missing", param="program_id")
    program = check_program_id(body["program_id"], "program_id")
    return _json({"program_id": program, "released": state_of(request).gateway.release(program)})


async def list_programs(request: web.Request) -> web.Response:
    """``GET /programs[?limit=N]``: all programs, or at most so many, those that wait first."""
    state = state_of(request)
    cluster, limit = state.gateway.scheduler.cluster, _limit(request)
    chosen = list(cluster.program_by_id) if limit is None else _first_programs(cluster, limit)

    def show(name: ProgramId) -> dict[str, Any] | None:
        program = cluster.program(name)
        return None if program is None else program_json(program, state)

    return await _json_in_slices(chosen, show)


def _limit(request: web.Request) -> int | None:
    text = request.query.get("limit")
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise BadRequest(f"limit must be a whole number of at least 0, got {text[:40]!r}", param="limit")
    return int(text)


def _first_programs(cluster: Cluster, limit: int) -> list[ProgramId]:
    """Programs that wait, the longest first, then those known for longest. O(limit)."""
    waiting = (waiter.program.id for waiter in cluster.queue.waiters.values() if waiter.program is not None)
    first = dict.fromkeys(islice(waiting, limit))
    first.update(dict.fromkeys(islice(cluster.program_by_id, limit)))
    return list(islice(first, limit))


async def show_program(request: web.Request) -> web.Response:
    """``GET /programs/{id}``."""
    return _json(program_json(_program(request), state_of(request)))


async def delete_program(request: web.Request) -> web.Response:
    """``DELETE /programs/{id}``: an operator's release."""
    check_admin(request)
    program = _program(request)
    state_of(request).gateway.release(program.id)
    return _json({"program_id": program.id, "released": True})


def _program(request: web.Request) -> Program:
    name = request.match_info["program"]
    program = state_of(request).gateway.scheduler.cluster.program(ProgramId(name))
    if program is None:
        raise NotFound(f"no program {name!r}", param="program_id")
    return program


# Backends


def _backends_json(state: State) -> list[dict[str, Any]]:
    per_backend = per_backend_json(state)
    shown = []
    for backend in state.gateway.scheduler.cluster.backend_by_id.values():
        entry = state.pool.watched.get(backend.id)
        shown.append(
            {
                "url": backend.id,
                "type": None if entry is None else entry.reader.name,
                "models": None if backend.models is None else sorted(backend.models),
                "last_error": None if entry is None else entry.last_error,
                "cached_tokens": None if state.following is None else state.following.cached_tokens(backend.id),
                **per_backend[backend.id],
            }
        )
    return shown


async def list_backends(request: web.Request) -> web.Response:
    """``GET /backends``."""
    return _json({"backends": _backends_json(state_of(request))})


async def add_backend(request: web.Request) -> web.Response:
    """``POST /backends`` {"url": ..., "api_key"?: ..., "verify_tls"?: bool, "type"?: ...}."""
    check_admin(request)
    body, state = await _body_object(request), state_of(request)
    unknown = sorted(set(body) - {"url", "api_key", "verify_tls", "type"})
    if unknown or not isinstance(body.get("url"), str):
        raise BadRequest("a backend is an object with url, and optionally api_key, verify_tls and type", param="url")
    if not isinstance(body.get("api_key"), (str, type(None))) or not isinstance(body.get("verify_tls", True), bool):
        raise BadRequest("api_key must be text and verify_tls true or false")
    if body.get("type") not in (None, *BACKEND_TYPES):
        raise BadRequest(f"type must be one of {', '.join(BACKEND_TYPES)}", param="type")
    try:
        config = BackendConfig(**body)
    except ValueError as error:
        raise BadRequest(str(error), param="url") from None
    present = state.gateway.scheduler.cluster.backend_by_id.get(config.id)
    if present is not None and present.is_draining:
        raise BadRequest(f"{config.id} is still draining; add it again once its removal is done", param="url")
    if present is not None:
        raise BadRequest(f"{config.id} is there already", param="url")
    entry = state.pool.add(config)
    try:
        await asyncio.wait_for(entry.first_look.wait(), _REMOVE_SECONDS)
    except asyncio.TimeoutError:
        pass
    return _json({"backends": _backends_json(state)}, status=201)


async def delete_backend(request: web.Request) -> web.Response:
    """``DELETE /backends?url=...[&drain_seconds=N]``: take no more turns, let those that run finish, remove it.

    The removal goes on where the client leaves; a second call with a shorter time ends the first one's wait.
    """
    check_admin(request)
    state = state_of(request)
    url = request.query.get("url", "")
    try:
        backend = BackendConfig(url).id
        drain_seconds = float(request.query.get("drain_seconds", _REMOVE_SECONDS))
    except ValueError as error:
        raise BadRequest(str(error), param="url") from None
    entry = state.pool.watched.get(backend)
    if entry is None:
        raise NotFound(f"no backend {backend}", param="url")
    state.gateway.handle(events.BackendDraining(backend))
    drained = state.gateway.scheduler.cluster.backend_by_id[backend]
    removal = state.pool.own(_remove_drained(state, entry, drained, drain_seconds), f"remove {backend}")
    finished = await asyncio.shield(removal)
    return _json({"url": backend, "removed": True, "drained": finished})


async def _remove_drained(state: State, entry: WatchedBackend, backend: Backend, drain_seconds: float) -> bool:
    """Wait until no turn runs there, then remove it; False when the time was over first, or another call removed it.

    Entry and backend are those that the drain began with: their URL may be another backend's by the end of it.
    """
    deadline_at = asyncio.get_running_loop().time() + max(0.0, drain_seconds)
    while backend.forwarded and not backend.is_removed:
        if asyncio.get_running_loop().time() >= deadline_at:
            break
        await asyncio.sleep(0.05)
    is_finished = not backend.forwarded
    if state.pool.remove(entry):
        state.metrics.forget_backend(entry.config.id)
    return is_finished


# Health and metrics


async def health(request: web.Request) -> web.Response:
    """``GET /health``: 200 while the daemon lives."""
    return _json(health_json(state_of(request)))


async def livez(request: web.Request) -> web.Response:
    """``GET /livez``: the process answers."""
    return _json({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """``GET /readyz``: 200 while turns are taken and a backend is there for them that has answered a look.

    Not before each backend of the settings was looked at: until then the one that answers may not be the one that
    serves a turn's model. Those that are added later change nothing until they have answered.
    """
    state = state_of(request)
    why = _unready(state)
    return _json({"status": why or "ok"}, status=503 if why else 200)


def _unready(state: State) -> str | None:
    """Why turns should not come here; None where they may."""
    if state.gateway.is_draining:
        return "draining"
    if not state.is_started or not all(entry.first_look.is_set() or entry.is_removed for entry in state.configured):
        return "backends are not looked at yet"
    watched = (state.pool.watched.get(backend.id) for backend in state.gateway.scheduler.cluster.backends)
    if not any(entry is not None and entry.observed_at is not None for entry in watched):
        return "no backend takes turns"
    return None


async def metrics(request: web.Request) -> web.Response:
    """``GET /metrics``: Prometheus text, or the published JSON with ``Accept: application/json``."""
    state = state_of(request)
    if "application/json" in request.headers.get("Accept", ""):
        return _json(metrics_json(state))
    return web.Response(body=state.metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def list_profiles(request: web.Request) -> web.Response:
    """``GET /profiles``."""
    profiler = state_of(request).profiler
    if profiler is None:
        raise ProfilingOff("profiling is off; start with --profile")
    return await _json_in_slices(profiler.programs(), profiler.profile)


async def show_profile(request: web.Request) -> web.Response:
    """``GET /profiles/{id}``."""
    profiler = state_of(request).profiler
    if profiler is None:
        raise ProfilingOff("profiling is off; start with --profile")
    name = request.match_info["program"]
    found = profiler.profile(check_program_id(name, "program_id"))
    if found is None:
        raise NotFound(f"no profile of program {name!r}", param="program_id")
    return _json(found)


# Inside


async def journal(request: web.Request) -> web.Response:
    """``GET /debug/journal``: the last events and what came of them. No prompts in it, but program ids."""
    check_admin(request)
    return _json({"entries": state_of(request).gateway.scheduler.journal.lines()})


async def invariants(request: web.Request) -> web.Response:
    """``GET /debug/invariants``: recount everything; 500 with the differences if there are any.

    O(programs x backends) in one go, 0.2 s for 10,000 programs on 8 backends: nothing else is served meanwhile.
    """
    check_admin(request)
    found = violations(state_of(request).gateway.scheduler.cluster)
    return _json({"violations": found}, status=500 if found else 200)


async def dashboard(request: web.Request) -> web.Response:
    """``GET /``: a page that shows the live state."""
    page = files("thunderagent.server").joinpath("dashboard.html").read_text(encoding="utf-8")
    return web.Response(text=page, content_type="text/html")


def routes() -> list[web.RouteDef]:
    """All of the above."""
    return [
        web.post("/programs/release", release_program),
        web.get("/programs", list_programs),
        web.get("/programs/{program}", show_program),
        web.delete("/programs/{program}", delete_program),
        web.get("/backends", list_backends),
        web.post("/backends", add_backend),
        web.delete("/backends", delete_backend),
        web.get("/health", health),
        web.get("/livez", livez),
        web.get("/readyz", readyz),
        web.get("/metrics", metrics),
        web.get("/profiles", list_profiles),
        web.get("/profiles/{program}", show_profile),
        web.get("/debug/journal", journal),
        web.get("/debug/invariants", invariants),
        web.get("/", dashboard),
    ]
