"""One look at a backend: its health, the models it serves, its metrics."""

from __future__ import annotations

import asyncio

import msgspec
from attrs import frozen

from thunderagent.upstream.client import BackendClient, FetchedPage, ForwardFailed
from thunderagent.upstream.prometheus import BackendObservation, MetricsUnreadable, read_metrics

__all__ = ["Scrape", "observe"]


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


_models = msgspec.json.Decoder(_Models)


@frozen
class Scrape:
    """What one look at a backend found.

    Attributes:
        healthy: ``/health`` answered, with a status below 500. A server without that page (404) counts as healthy.
        timed_out: not healthy only because ``/health`` did not answer in time; a busy server may do that, so this
            is a weaker sign than a refused connection.
        models: the names it serves, LoRA adapters among them; None where it did not say.
        observation: None where it has no readable metrics, which is never a sign of bad health.
        errors: for the log, one text per page that failed.
    """

    healthy: bool
    timed_out: bool
    models: frozenset[str] | None
    observation: BackendObservation | None
    errors: tuple[str, ...]


async def observe(
    client: BackendClient, *, health_timeout_seconds: float = 5.0, page_timeout_seconds: float = 5.0
) -> Scrape:
    """Fetch /health, /v1/models and /metrics at once; returns within the longer timeout.

    Each page may fail by itself. Called from one task per backend, so that a hanging one delays no other. Raises
    nothing but CancelledError.
    """
    health, models, metrics = await asyncio.gather(
        _fetch(client, "/health", health_timeout_seconds),
        _fetch(client, "/v1/models", page_timeout_seconds),
        _fetch(client, "/metrics", page_timeout_seconds),
    )
    errors: list[str] = []
    healthy = isinstance(health, FetchedPage) and health.status < 500
    if not healthy:
        errors.append(_complaint("/health", health))
    return Scrape(
        healthy=healthy,
        timed_out=isinstance(health, ForwardFailed) and health.reason == "timeout",
        models=_served(models, errors),
        observation=_observation(metrics, errors),
        errors=tuple(dict.fromkeys(errors)),
    )


async def _fetch(client: BackendClient, path: str, timeout_seconds: float) -> FetchedPage | ForwardFailed:
    try:
        return await client.fetch(path, timeout_seconds=timeout_seconds)
    except ForwardFailed as error:
        return error


def _served(page: FetchedPage | ForwardFailed, errors: list[str]) -> frozenset[str] | None:
    if isinstance(page, FetchedPage) and page.status == 200:
        try:
            return frozenset(model.id for model in _models.decode(page.body).data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            errors.append(f"/v1/models: {error}")
            return None
    errors.append(_complaint("/v1/models", page))
    return None


def _observation(page: FetchedPage | ForwardFailed, errors: list[str]) -> BackendObservation | None:
    if isinstance(page, FetchedPage) and page.status == 200:
        try:
            return read_metrics(page.body)
        except MetricsUnreadable as error:
            errors.append(f"/metrics: {error}")
            return None
    errors.append(_complaint("/metrics", page))
    return None


def _complaint(path: str, page: FetchedPage | ForwardFailed) -> str:
    if isinstance(page, ForwardFailed):
        return f"{path}: {page}"
    return f"{path}: status {page.status}"
