"""What vLLM servers counted themselves, and the few calls that the benchmark makes to them."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any

import aiohttp
from attrs import astuple, frozen

from benchmarks.vllm_agents import sample_text
from thunderagent.upstream.reading import BackendObservation
from thunderagent.upstream.vllm import read_metrics

__all__ = ["EngineCounts", "Engines"]

_SAMPLE_WORDS = 2000
_RESET_TRIES = 10


@frozen
class EngineCounts:
    """Totals over the servers since their start, or what was counted between two looks."""

    queried_tokens: int = 0
    """Prompt tokens looked up in the prefix cache."""
    hit_tokens: int = 0
    """Of these, found there."""
    computed_tokens: int = 0
    """Prompt tokens prefilled (``vllm:prompt_tokens_by_source_total{source="local_compute"}``)."""
    output_tokens: int = 0
    preemptions: int = 0

    @property
    def hit_rate(self) -> float:
        return self.hit_tokens / self.queried_tokens if self.queried_tokens else 0.0

    def since(self, before: EngineCounts) -> EngineCounts:
        """What was counted after ``before``."""
        return EngineCounts(*(now - then for now, then in zip(astuple(self), astuple(before), strict=True)))


@frozen
class Engines:
    """vLLM servers at their base URLs, without ``/v1``."""

    urls: tuple[str, ...]
    model: str
    api_key: str | None = None

    async def counts(self) -> EngineCounts:
        """Raises SystemExit where a server's page lacks one of the counters."""
        totals = [0] * 5
        for url, seen in zip(self.urls, await self._observations(), strict=True):
            found = (
                seen.prefix_cache_queries,
                seen.prefix_cache_hits,
                seen.computed_prompt_tokens,
                seen.generation_tokens,
                seen.preemptions,
            )
            for index, value in enumerate(found):
                if value is None:
                    raise SystemExit(f"{url}/metrics lacks a counter of vLLM's; is this vLLM 0.10 or later?")
                totals[index] += value
        return EngineCounts(*totals)

    async def kv_tokens(self) -> int:
        """Usable tokens of KV cache per server, the least of them. Raises SystemExit where it isn't told."""
        sizes = [seen.capacity_tokens for seen in await self._observations()]
        known = [size for size in sizes if size is not None]
        if len(known) < len(sizes):
            raise SystemExit("a server's /metrics does not tell its cache size (vllm:cache_config_info)")
        return min(known)

    async def describe(self) -> str:
        """What is measured, for the line above a table."""
        async with self._session() as session, session.get(f"{self.urls[0]}/version") as answer:
            version = (await answer.json())["version"] if answer.status == 200 else "of unknown version"
        return f"\n{len(self.urls)} x vLLM {version}, {self.model}, {await self.kv_tokens():,} KV tokens each\n"

    async def tokens_per_word(self) -> float:
        """Of the agents' texts, by the server's own tokenizer."""
        text = sample_text(random.Random(0), _SAMPLE_WORDS)
        async with self._session() as session:
            body = {"model": self.model, "prompt": text, "add_special_tokens": False}
            async with session.post(f"{self.urls[0]}/tokenize", json=body) as answer:
                if answer.status != 200:
                    raise SystemExit(f"{self.urls[0]}/tokenize: status {answer.status}: {await answer.text()}")
                told: dict[str, Any] = await answer.json()
                return float(told["count"]) / _SAMPLE_WORDS

    async def reset_prefix_caches(self) -> bool:
        """Empty the caches; False where a server does not offer it (``VLLM_SERVER_DEV_MODE=1`` does) or will not.

        A server will not while a request's blocks are held, so it is asked for some seconds.
        """
        async with self._session() as session:
            for url in self.urls:
                for _ in range(_RESET_TRIES):
                    async with session.post(f"{url}/reset_prefix_cache") as answer:
                        if answer.status != 200:
                            return False
                        told = await answer.read()
                    if not told or json.loads(told).get("success", True):
                        break
                    await asyncio.sleep(0.5)
                else:
                    return False
        return True

    async def _observations(self) -> Sequence[BackendObservation]:
        pages = []
        async with self._session() as session:
            for url in self.urls:
                async with session.get(f"{url}/metrics") as answer:
                    pages.append(read_metrics(await answer.read()))
        return pages

    def _session(self) -> aiohttp.ClientSession:
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=60))
