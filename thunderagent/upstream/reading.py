"""What backends of every type say of themselves, reduced to the few numbers that scheduling and reports use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import ClassVar

from attrs import frozen

from thunderagent.core.usage import Prefills
from thunderagent.upstream.client import FetchedPage, ForwardFailed

__all__ = [
    "BackendObservation",
    "Fetch",
    "MetricsUnreadable",
    "Reader",
    "Reading",
    "body_of",
    "complaint",
    "read_page",
]

Fetch = Callable[[str], Awaitable[FetchedPage | ForwardFailed]]
"""GET a path of the backend within the look's time limit; a failure is returned."""


class MetricsUnreadable(Exception):
    """A metrics page that is not what the backend's type writes; ``detail`` says where."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return f"metrics page cannot be read: {self.detail}"


@frozen
class BackendObservation:
    """One reading of a backend's metrics; None where it does not say. Counts are since its start.

    Attributes:
        capacity_tokens: usable KV tokens over all engines.
        block_size: tokens per block, of the first engine.
        num_gpu_blocks: over all engines, reserved ones included.
        kv_usage_ratio: 0 to 1, mean over engines; running requests only, what stays cached behind them is not in it.
        used_tokens: the same in tokens, summed.
        prefix_hit_ratio: 0 to 1, mean over engines, of their last prefills; where hits and queries are not counted.
        computed_prompt_tokens: prompt tokens that were prefilled here, not found in a cache.
        prefills: of the requests that ended, what was computed of their prompts, and how long that took.
        completed_requests: finished by themselves, as far as the type tells that from others.
    """

    capacity_tokens: int | None = None
    block_size: int | None = None
    num_gpu_blocks: int | None = None
    kv_usage_ratio: float | None = None
    used_tokens: int | None = None
    running: int | None = None
    waiting: int | None = None
    prefix_cache_queries: int | None = None
    prefix_cache_hits: int | None = None
    prefix_hit_ratio: float | None = None
    prompt_tokens: int | None = None
    computed_prompt_tokens: int | None = None
    prefills: Prefills | None = None
    generation_tokens: int | None = None
    preemptions: int | None = None
    completed_requests: int | None = None


@frozen
class Reading:
    """What a reader found at one look.

    Attributes:
        observation: None where the backend told nothing, which is never a sign of bad health.
        errors: for the log, one text per page that failed.
        unread_page: its metrics page, where that has none of the numbers of the type: it may be of another type.
    """

    observation: BackendObservation | None = None
    errors: tuple[str, ...] = ()
    unread_page: bytes | None = None


class Reader(ABC):
    """Reads the pages of one backend, as servers of its type write them. A new type is a reader in ``READERS``.

    One object per backend, called from the one task that watches it.
    """

    name: ClassVar[str]
    """What users call the type."""
    health_path: ClassVar[str] = "/health"
    """Below status 500, it is healthy."""
    tells_capacity: ClassVar[bool] = True
    """False where an unknown capacity is what everyone expects, and no warning."""

    @abstractmethod
    async def read(self, fetch: Fetch) -> Reading:
        """Fetch and read what the type has beside health and models. Raises nothing but CancelledError."""

    def forget(self) -> None:  # noqa: B027 most readers remember nothing
        """The backend failed a look: what was remembered may be another process's."""

    @classmethod
    def recognises(cls, page: bytes) -> bool:
        """Whether a metrics page is this type's. Asked only of pages that another reader could not use."""
        return False


def body_of(path: str, page: FetchedPage | ForwardFailed, errors: list[str]) -> bytes | None:
    """The page's body; None, and a text among the errors, where it is no answer with status 200."""
    if isinstance(page, FetchedPage) and page.status == 200:
        return page.body
    errors.append(complaint(path, page))
    return None


async def read_page(fetch: Fetch, read: Callable[[bytes], BackendObservation]) -> Reading:
    """The page at /metrics, for types that have all of it there. ``read`` may raise MetricsUnreadable."""
    errors: list[str] = []
    page = body_of("/metrics", await fetch("/metrics"), errors)
    if page is None:
        return Reading(errors=tuple(errors))
    try:
        seen = read(page)
    except MetricsUnreadable as error:
        return Reading(None, (f"/metrics: {error}",), page)
    return Reading(seen, unread_page=page if seen == BackendObservation() else None)


def complaint(path: str, page: FetchedPage | ForwardFailed) -> str:
    """What was wrong with a page, for the log. A backend that nothing reaches is none of a page's faults."""
    if isinstance(page, ForwardFailed):
        return f"{path}: {page}" if page.sent else str(page)
    return f"{path}: status {page.status}"
