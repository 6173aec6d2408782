"""The agents of ``benchmarks.vllm``: conversations that grow by an answer and a tool's output each turn.

Texts and tool times are fixed by the agent's number, answers by temperature 0. No turn has a ``seed``: vLLM's CPU
engine ends at a seeded prompt that is prefilled in chunks.
"""

from __future__ import annotations

import asyncio
import json
import keyword
import random
import time
from typing import Any

import aiohttp
from attrs import define, field, frozen

__all__ = ["Agents", "Workload", "sample_text"]

_WORDS = (
    *keyword.kwlist,
    "print",
    "value",
    "result",
    "file",
    "open",
    "line",
    "name",
    "path",
    "test",
    "error",
    "read",
)
_TURN_SECONDS = 1800.0


@frozen
class Workload:
    """What one agent does. Tokens are the server's own, as far as ``tokens_per_word`` tells."""

    turns: int = 10
    first_tokens: int = 1200
    output_tokens: int = 48
    tool_tokens: int = 250
    tool_seconds: tuple[float, float] = (0.2, 1.0)
    """Least and most time between turns."""

    @property
    def peak_tokens(self) -> int:
        """What the conversation holds after its last answer."""
        return self.first_tokens + self.turns * self.output_tokens + (self.turns - 1) * self.tool_tokens


@define
class Agents:
    """Agents that all begin at once; ``errors`` are what agents gave up for."""

    urls: tuple[str, ...]
    """An agent stays at one of them."""
    model: str
    workload: Workload
    tokens_per_word: float
    api_key: str | None = None
    is_routed: bool = False
    """Programs are released at the end."""
    request_limit: int | None = None
    """Requests that run at once per URL, the others wait in the client. None: no limit."""
    turn_seconds: list[float] = field(factory=list)
    """Of each finished turn, waits included."""
    errors: list[str] = field(factory=list)

    async def run(self, count: int, run_name: str) -> None:
        """Let ``count`` agents work to their end. ``run_name`` keeps the texts of different runs apart."""
        limits = [asyncio.Semaphore(self.request_limit or count) for _ in self.urls]
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        timeout = aiohttp.ClientTimeout(total=_TURN_SECONDS)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session:
            await asyncio.gather(*(self._run_one(session, limits, number, run_name) for number in range(count)))

    async def _run_one(
        self, session: aiohttp.ClientSession, limits: list[asyncio.Semaphore], number: int, run_name: str
    ) -> None:
        url, limit = self.urls[number % len(self.urls)], limits[number % len(self.urls)]
        chance = random.Random(f"{run_name} {number}")
        program_id = f"{run_name}-{number}"
        messages = [{"role": "user", "content": self._text(chance, self.workload.first_tokens)}]
        try:
            for turn_number in range(self.workload.turns):
                if turn_number:
                    await asyncio.sleep(chance.uniform(*self.workload.tool_seconds))
                    messages.append({"role": "user", "content": self._text(chance, self.workload.tool_tokens)})
                sent_at = time.monotonic()
                async with limit:
                    answer = await self._take_turn(session, url, program_id, messages)
                self.turn_seconds.append(time.monotonic() - sent_at)
                messages.append({"role": "assistant", "content": answer})
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError, KeyError) as error:
            self.errors.append(f"{program_id}: {error!r}")
        if self.is_routed:
            async with session.post(f"{url}/programs/release", json={"program_id": program_id}) as release:
                if release.status != 200:
                    self.errors.append(f"{program_id}: release was answered {release.status}")

    async def _take_turn(
        self, session: aiohttp.ClientSession, url: str, program_id: str, messages: list[dict[str, str]]
    ) -> str:
        body = {
            "model": self.model,
            "messages": messages,
            "max_tokens": self.workload.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"program_id": program_id} if self.is_routed else {}),
        }
        parts: list[str] = []
        usage = None
        async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
            if answer.status != 200:
                raise ValueError(f"status {answer.status}: {(await answer.text())[:300]}")
            async for line in answer.content:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                event: dict[str, Any] = json.loads(line[6:])
                if "error" in event:
                    raise ValueError(f"the stream broke: {event['error']}")
                usage = event.get("usage") or usage
                parts += (choice["delta"].get("content") or "" for choice in event["choices"])
        if usage is None:
            raise ValueError("the stream ended without usage")
        return "".join(parts)

    def _text(self, chance: random.Random, tokens: int) -> str:
        return sample_text(chance, round(tokens / self.tokens_per_word))


def sample_text(chance: random.Random, words: int) -> str:
    """Words in lines of twelve, as code and logs have them."""
    chosen = chance.choices(_WORDS, k=words)
    return "\n".join(" ".join(chosen[start : start + 12]) for start in range(0, words, 12))
