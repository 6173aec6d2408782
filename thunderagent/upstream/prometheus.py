"""The needed lines of a Prometheus page, as samples by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from thunderagent.upstream.reading import MetricsUnreadable

__all__ = ["Samples", "has_lines_of", "mean", "read_samples", "total"]

Samples = Mapping[str, Sequence[Sample]]


def read_samples(page: bytes, prefix: str, names: Collection[str]) -> Samples:
    """The samples of these metrics, whose names all begin with ``prefix``; an empty page has none.

    Only lines of the needed names reach the parser: a whole page of 880 lines would hold the event loop for 20 ms,
    the needed ones for less than 1 ms.

    Raises:
        MetricsUnreadable: the page is not text, or a needed line is malformed.
    """
    try:
        text = page.decode()
    except UnicodeDecodeError as error:
        raise MetricsUnreadable(f"not UTF-8 at byte {error.start}") from error
    samples = _parse(
        line
        for line in text.split("\n")
        if line.startswith(prefix) and line.split("{", 1)[0].split(" ", 1)[0] in names
    )
    if not samples and text.lstrip().startswith("<"):
        raise MetricsUnreadable("it is HTML or XML")
    return samples


def has_lines_of(page: bytes, prefix: bytes) -> bool:
    """Whether a line of the page begins so."""
    return page.startswith(prefix) or b"\n" + prefix in page


def _parse(lines: Iterable[str]) -> Samples:
    samples: dict[str, list[Sample]] = {}
    page = "\n".join(lines)
    if not page:
        return samples
    try:
        for family in text_string_to_metric_families(page + "\n"):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append(sample)
    except (ValueError, KeyError, IndexError) as error:
        raise MetricsUnreadable(str(error) or type(error).__name__) from error
    return samples


def total(
    samples: Sequence[Sample], chosen: Callable[[Mapping[str, str]], bool] = lambda _labels: True
) -> int | None:
    """The sum of the finite values whose labels are chosen; None without any."""
    values = [sample.value for sample in samples if chosen(sample.labels) and math.isfinite(sample.value)]
    return round(sum(values)) if values else None


def mean(values: Iterable[float]) -> float | None:
    """The mean of the finite values; None without any."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None
