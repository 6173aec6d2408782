"""One look at a backend: its health, the models it serves, and what a server of its type says beside."""

from __future__ import annotations

import asyncio

import msgspec
from attrs import frozen

from thunderagent.upstream.client import BackendClient, FetchedPage, ForwardFailed
from thunderagent.upstream.readers import type_of
from thunderagent.upstream.reading import BackendObservation, Reader, body_of, complaint

__all__ = ["Scrape", "observe"]


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


_models = msgspec.json.Decoder(_Models)
_MODELS_PATH = "/v1/models"


@frozen
class Scrape:
    """What one look at a backend found.

    Attributes:
        healthy: the type's health page answered, with a status below 500. A server without that page (404) counts
            as healthy, unless it has no /v1/models either: then something else listens there.
        timed_out: not healthy only because that page did not answer in time; a busy server may do that, so this
            is a weaker sign than a refused connection.
        models: the names it serves, LoRA adapters among them; None where it did not say.
        observation: None where it has no readable metrics, which is never a sign of bad health.
        errors: for the log, one text per page that failed.
        looks_like: the type that writes such a metrics page, where it is not the one that the backend is said to be.
    """

    healthy: bool
    timed_out: bool
    models: frozenset[str] | None
    observation: BackendObservation | None
    errors: tuple[str, ...]
    looks_like: str | None = None


async def observe(
    client: BackendClient,
    reader: Reader,
    *,
    health_timeout_seconds: float = 5.0,
    page_timeout_seconds: float = 5.0,
) -> Scrape:
    """Fetch health, /v1/models and what the type has beside, at once; returns soon after the longer timeout.

    Each page may fail by itself. Called from one task per backend, so that a hanging one delays no other. Raises
    nothing but CancelledError.
    """

    async def fetch(path: str) -> FetchedPage | ForwardFailed:
        return await _fetch(client, path, page_timeout_seconds)

    async def fetch_health() -> FetchedPage | ForwardFailed | None:
        if reader.health_path == _MODELS_PATH:
            return None
        return await _fetch(client, reader.health_path, health_timeout_seconds)

    health, models, reading = await asyncio.gather(fetch_health(), fetch(_MODELS_PATH), reader.read(fetch))
    if health is None:
        health = models
    errors: list[str] = []
    healthy = isinstance(health, FetchedPage) and health.status < 500
    if health is not models and _is_missing(health) and _is_missing(models):
        healthy = False
    if not healthy:
        reader.forget()
        errors.append(complaint(reader.health_path, health))
    looks_like = None if reading.unread_page is None else type_of(reading.unread_page)
    served = _served(models, errors)
    return Scrape(
        healthy=healthy,
        timed_out=isinstance(health, ForwardFailed) and health.reason == "timeout",
        models=served,
        observation=reading.observation,
        errors=tuple(dict.fromkeys((*errors, *reading.errors))),
        looks_like=looks_like if looks_like != reader.name else None,
    )


def _is_missing(page: FetchedPage | ForwardFailed) -> bool:
    return isinstance(page, FetchedPage) and page.status == 404


async def _fetch(client: BackendClient, path: str, timeout_seconds: float) -> FetchedPage | ForwardFailed:
    try:
        return await client.fetch(path, timeout_seconds=timeout_seconds)
    except ForwardFailed as error:
        return error


def _served(page: FetchedPage | ForwardFailed, errors: list[str]) -> frozenset[str] | None:
    body = body_of(_MODELS_PATH, page, errors)
    if body is None:
        return None
    try:
        return frozenset(model.id for model in _models.decode(body).data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        errors.append(f"{_MODELS_PATH}: {error}")
        return None
