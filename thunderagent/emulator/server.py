"""An emulated vLLM 0.32 over HTTP: its endpoints, errors and streams over ``emulator.engine``.

``create_app`` makes an ``aiohttp`` application for any runner or test server; ``serve`` runs it on a port. What the
answers look like was recorded from vLLM; ``GET /version`` says that this is not one. Beside vLLM's endpoints:

* ``GET``, ``POST`` and ``DELETE /fault``: faults on demand, see ``emulator.faults`` for the kinds and their fields;
* ``GET /metrics`` has two names of its own, ``thunderagent_emulator_late_seconds_total`` (time that the process fell
  behind the speed asked) and ``thunderagent_emulator_speed_ratio``. Seconds under vLLM's names are the engine's: at
  speed 10 a request of one second counts as ten.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import attrs
import msgspec
from aiohttp import web

from thunderagent.emulator.counters import render_metrics
from thunderagent.emulator.driver import EngineDriver
from thunderagent.emulator.engine import Engine, EngineSettings, SchedulingPolicy
from thunderagent.emulator.faults import Fault, FaultBoard, FaultError, fault_from_mapping
from thunderagent.emulator.generation import Generator
from thunderagent.emulator.requests import Api, ApiError, decode_body, read_messages
from thunderagent.emulator.script import Script
from thunderagent.emulator.timing import DEFAULT_PRESET, Preset
from thunderagent.emulator.tokens import count_tokens, render_prompt, token_bytes, token_ids

__all__ = ["RUNNER_OPTIONS", "EmulatorConfig", "EmulatorConfigError", "create_app", "driver_key", "generator_key"]

VERSION = "0.32.0-emulated"

NO_SCRIPT = Script()

MAX_BODY_BYTES = 64 * 1024 * 1024

RUNNER_OPTIONS: dict[str, Any] = {"keepalive_timeout": 5.0, "access_log": None, "shutdown_timeout": 0.5}
"""Options for ``web.AppRunner``, or ``server_kwargs`` of a test server: idle connections close after 5 s, as
uvicorn's do under vLLM."""


class EmulatorConfigError(ValueError):
    """Settings that no engine can run with; the message says which and what to do."""


@attrs.frozen
class EmulatorConfig:
    """What an emulated engine is started with; None takes the preset's value.

    ``speed``: engine seconds per second. ``kv_tokens`` is rounded down to whole blocks. ``max_model_len`` None: the
    preset's, or the whole KV cache where that is smaller. ``default_completion_tokens``: length of a reply whose
    request names no limit. ``prompt_tokens_details``: whether usage shows cached tokens (vLLM:
    ``--enable-prompt-tokens-details``).
    """

    models: tuple[str, ...] = ("emulated",)
    preset: Preset = DEFAULT_PRESET
    speed: float = 1.0
    kv_tokens: int | None = None
    block_size: int = 16
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    scheduling_policy: SchedulingPolicy = SchedulingPolicy.FCFS
    prefix_caching: bool = True
    prompt_tokens_details: bool = True
    default_completion_tokens: int = 128
    script: Script = NO_SCRIPT
    faults: tuple[Fault, ...] = ()

    @property
    def num_gpu_blocks(self) -> int:
        """Blocks of the KV cache, the reserved one included."""
        return (self.kv_tokens or self.preset.kv_tokens) // self.block_size + 1

    @property
    def model_len(self) -> int:
        """Most tokens of a prompt and its reply."""
        usable = (self.num_gpu_blocks - 1) * self.block_size
        return min(self.preset.max_model_len, usable) if self.max_model_len is None else self.max_model_len

    def settings(self) -> EngineSettings:
        """The engine's settings. Raises EmulatorConfigError."""
        usable = (self.num_gpu_blocks - 1) * self.block_size
        if usable < 2 * self.block_size:
            raise EmulatorConfigError(
                f"--kv-tokens {self.kv_tokens} is too small: it takes two blocks of {self.block_size} tokens"
            )
        if self.model_len > usable:
            raise EmulatorConfigError(
                f"--max-model-len {self.max_model_len} does not fit the KV cache of {usable} tokens;"
                " raise --kv-tokens or lower --max-model-len"
            )
        return EngineSettings(
            num_gpu_blocks=self.num_gpu_blocks,
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs or self.preset.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens or self.preset.max_num_batched_tokens,
            scheduling_policy=self.scheduling_policy,
            prefix_caching=self.prefix_caching,
        )


config_key = web.AppKey("config", EmulatorConfig)
driver_key = web.AppKey("driver", EngineDriver)
generator_key = web.AppKey("generator", Generator)
faults_key = web.AppKey("faults", FaultBoard)
started_key = web.AppKey("started", int)


def create_app(config: EmulatorConfig | None = None) -> web.Application:
    """The emulated engine as an application. Raises EmulatorConfigError.

    For a test server, pass ``RUNNER_OPTIONS`` as ``server_kwargs`` where idle connections matter. ``app[driver_key]``
    leads to the engine and its counters.
    """
    config = config or EmulatorConfig()
    engine = Engine(config.settings(), config.preset.timing)
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_plain_errors])
    app[config_key] = config
    app[driver_key] = driver = EngineDriver(engine, config.speed)
    app[faults_key] = faults = FaultBoard(config.faults)
    app[started_key] = int(time.time())
    app[generator_key] = generator = Generator(
        driver,
        faults,
        models=config.models,
        max_model_len=config.model_len,
        script=config.script,
        default_tokens=config.default_completion_tokens,
        usage_details=config.prompt_tokens_details,
    )
    app.cleanup_ctx.append(_run_driver)
    app.on_response_prepare.append(_sign)
    for api in Api:
        app.router.add_post(api.value, _inference(generator, api))
    app.router.add_routes(
        [
            web.get("/v1/models", _models),
            web.get("/health", _health),
            web.get("/ping", _health),
            web.get("/version", _version),
            web.get("/metrics", _metrics),
            web.post("/reset_prefix_cache", _reset_prefix_cache),
            web.post("/tokenize", _tokenize),
            web.post("/detokenize", _detokenize),
            web.post("/v1/messages/count_tokens", _count_tokens),
            web.get("/fault", _list_faults),
            web.post("/fault", _add_fault),
            web.delete("/fault", _clear_faults),
        ]
    )
    return app


async def _run_driver(app: web.Application) -> AsyncIterator[None]:
    driver = app[driver_key]
    tasks = [asyncio.create_task(driver.run()), asyncio.create_task(driver.watch_clients())]
    yield
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task


async def _sign(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "thunderagent-emulated-engine"


@web.middleware
async def _plain_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Errors outside the APIs in the words of vLLM's web framework."""
    try:
        return await handler(request)
    except ApiError as error:
        api = next((api for api in Api if api.value == request.path), None)
        return _json(error.body(api), error.status)
    except web.HTTPMethodNotAllowed as error:
        return _json(b'{"detail":"Method Not Allowed"}', 405, {"Allow": ",".join(sorted(error.allowed_methods))})
    except web.HTTPNotFound:
        return _json(b'{"detail":"Not Found"}', 404)
    except web.HTTPRequestEntityTooLarge:
        return _json(ApiError(413, "Request body too large").body(), 413)


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


def _inference(generator: Generator, api: Api) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        return await generator.handle(request, api, secrets.token_hex(8))

    return handle


async def _models(request: web.Request) -> web.Response:
    config, created = request.app[config_key], request.app[started_key]
    permission = {
        "object": "model_permission",
        "created": created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    models = [
        {
            "id": model,
            "object": "model",
            "created": created,
            "owned_by": "thunderagent-emulator",
            "root": model,
            "parent": None,
            "max_model_len": config.model_len,
            "permission": [{"id": f"modelperm-{secrets.token_hex(8)}", **permission}],
        }
        for model in config.models
    ]
    return _json(msgspec.json.encode({"object": "list", "data": models}))


async def _health(request: web.Request) -> web.Response:
    return web.Response(status=200 if request.app[faults_key].healthy() else 503)


async def _version(request: web.Request) -> web.Response:
    config = request.app[config_key]
    fields = {"version": VERSION, "emulated": True, "preset": config.preset.name, "timings": config.preset.title}
    return _json(msgspec.json.encode({**fields, "speed": config.speed}))


async def _metrics(request: web.Request) -> web.Response:
    driver = request.app[driver_key]
    own = (
        "# HELP thunderagent_emulator_late_seconds_total Time by which the process fell behind the speed asked.\n"
        "# TYPE thunderagent_emulator_late_seconds_total counter\n"
        f"thunderagent_emulator_late_seconds_total {driver.late_seconds}\n"
        "# HELP thunderagent_emulator_speed_ratio Simulated seconds per second.\n"
        "# TYPE thunderagent_emulator_speed_ratio gauge\n"
        f"thunderagent_emulator_speed_ratio {float(driver.speed)}\n"
    )
    text = render_metrics(driver.engine, request.app[config_key].models[0]) + own
    content_type = "text/plain; version=0.0.4; charset=utf-8"
    return web.Response(body=text.encode(), headers={"Content-Type": content_type})


async def _reset_prefix_cache(request: web.Request) -> web.Response:
    done = request.app[driver_key].engine.reset_prefix_cache()
    return _json(msgspec.json.encode({"success": done}))


async def _tokenize(request: web.Request) -> web.Response:
    body = decode_body(await request.read())
    if isinstance(body.get("prompt"), str):
        rendered = body["prompt"].encode()
    else:
        rendered = render_prompt(*read_messages(Api.CHAT, body))
    tokens = token_ids(rendered)
    fields = {"count": len(tokens), "max_model_len": request.app[config_key].model_len, "tokens": tokens}
    return _json(msgspec.json.encode({**fields, "token_strs": None}))


async def _detokenize(request: web.Request) -> web.Response:
    body = decode_body(await request.read())
    try:
        text = token_bytes(body.get("tokens") or []).rstrip(b"\0").decode("utf-8", "replace")
    except (AttributeError, OverflowError, TypeError) as error:
        raise ApiError(400, "tokens must be a list of token ids", param="tokens") from error
    return _json(msgspec.json.encode({"prompt": text}))


async def _count_tokens(request: web.Request) -> web.Response:
    body = decode_body(await request.read())
    tokens = count_tokens(render_prompt(*read_messages(Api.MESSAGES, body)))
    fields = {"input_tokens": tokens, "context_management": {"original_input_tokens": tokens}}
    return _json(msgspec.json.encode(fields))


async def _list_faults(request: web.Request) -> web.Response:
    return _json(msgspec.json.encode({"faults": [attrs.asdict(fault) for fault in request.app[faults_key].faults]}))


async def _add_fault(request: web.Request) -> web.Response:
    try:
        fault = fault_from_mapping(decode_body(await request.read()))
    except FaultError as error:
        raise ApiError(400, str(error)) from error
    request.app[faults_key].add(fault)
    return await _list_faults(request)


async def _clear_faults(request: web.Request) -> web.Response:
    request.app[faults_key].clear()
    return await _list_faults(request)
