"""The types of backends, by the name that users give them."""

from __future__ import annotations

from collections.abc import Mapping

from thunderagent.upstream.openai import OpenaiReader
from thunderagent.upstream.reading import Reader
from thunderagent.upstream.sglang import SglangReader
from thunderagent.upstream.skyrl import SkyrlReader
from thunderagent.upstream.vllm import VllmReader

__all__ = ["READERS", "type_of"]

READERS: Mapping[str, type[Reader]] = {
    reader.name: reader for reader in (VllmReader, SglangReader, SkyrlReader, OpenaiReader)
}


def type_of(page: bytes) -> str | None:
    """The type whose servers write such a metrics page; None where it is no known one's."""
    return next((name for name, reader in READERS.items() if reader.recognises(page)), None)
