"""Many programs at once that need twice the KV cache there is: every turn is answered and nothing is left."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import aiohttp
import pytest
from attrs import define, field
from router_harness import CHAT, Router, Stack

from thunderagent.core.invariants import check


@define
class Agent:
    """A program as mini-swe-agent's: one growing conversation, a command's output after each answer."""

    name: str
    router: Router
    turns: int
    random: random.Random
    start_tokens: int
    step_tokens: int
    statuses: list[int] = field(factory=list)
    total_tokens: int = 0

    async def run(self) -> None:
        """All turns, then the release."""
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": "You are a helpful assistant that can interact with a computer. " * 8},
            {"role": "user", "content": self._text(self.start_tokens)},
        ]
        for turn in range(self.turns):
            answer = await self._turn(messages, stream=turn % 3 == 2)
            messages += [
                {"role": "assistant", "content": answer},
                {"role": "user", "content": self._text(self.step_tokens)},
            ]
            await asyncio.sleep(self.random.uniform(0.0, 0.04))
        assert await self.router.release(self.name)

    async def _turn(self, messages: list[dict[str, Any]], *, stream: bool) -> str:
        body = {"model": "emulated", "messages": messages, "max_tokens": 24, "program_id": self.name}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
            async with self.router.session.post(self.router.url + CHAT, json=body) as reply:
                self.statuses.append(reply.status)
                received = await reply.read()
                assert received.endswith(b"data: [DONE]\n\n")
                return "streamed"
        status, answer = await self.router.post(CHAT, body)
        self.statuses.append(status)
        assert status == 200, answer
        self.total_tokens = max(self.total_tokens, answer["usage"]["total_tokens"])
        return str(answer["choices"][0]["message"]["content"])

    def _text(self, tokens: int) -> str:
        """Text of its own: no other program shares the prefix beyond the system prompt."""
        return "".join(f"{self.random.randrange(16**4):04x}" for _ in range(tokens))


async def run_agents(stack: Stack, policy: str, agents: int, kv_tokens: int, turns: int = 5) -> tuple[Router, int]:
    """Agents that need over twice what two engines of ``kv_tokens`` hold; the router, and what they need in all."""
    engines = [await stack.engine(kv_tokens=kv_tokens, speed=50.0, max_model_len=4096) for _ in range(2)]
    router = await stack.router(*engines, policy=policy, metrics_interval_seconds=1.0)
    half_tokens = 9 * kv_tokens // (4 * agents)
    started = [
        Agent(f"p{index}", router, turns, random.Random(index), half_tokens, half_tokens // turns)
        for index in range(agents)
    ]
    await asyncio.wait_for(asyncio.gather(*(agent.run() for agent in started)), 25)
    assert [agent.statuses for agent in started] == [[200] * turns] * agents
    assert await router.programs() == {}
    check(router.gateway.scheduler.cluster)
    health = (await router.get("/health"))[1]
    assert (health["turns_held"], health["turns_running"], health["programs_count"]) == (0, 0, 0)
    assert {shown["accounted_tokens"] for shown in health["per_backend"].values()} == {0}
    assert {engine.running for engine in engines} == {0}
    assert await router.metric("thunderagent_turns_total") == agents * turns
    assert await router.metric("thunderagent_turns_total", outcome="completed") == agents * turns
    assert await router.metric("thunderagent_decisions_rejected_total") == 0
    assert await router.metric("thunderagent_policy_failures_total") == 0
    return router, sum(agent.total_tokens for agent in started)


async def test_128_programs_under_twice_the_kv_are_all_served(stack: Stack) -> None:
    """The reason for the router: whoever does not fit waits, and everyone ends."""
    router, demanded_tokens = await run_agents(stack, "pause-resume", agents=128, kv_tokens=25_600)
    assert demanded_tokens >= 2 * (2 * 25_600)
    assert await router.metric("thunderagent_holds_total") > 0
    assert await router.metric("thunderagent_pauses_total") > 0
    assert await router.metric("thunderagent_resumes_total") > 0
    assert await router.metric("thunderagent_forced_admissions_total") == 0


@pytest.mark.parametrize("policy", ["round-robin", "affinity", "least-kv"])
async def test_programs_under_pressure_are_all_served(stack: Stack, policy: str) -> None:
    """The same in small under each other policy; only one that knows capacity holds."""
    router, _ = await run_agents(stack, policy, agents=24, kv_tokens=6_400, turns=4)
    assert (await router.metric("thunderagent_holds_total") > 0) == (policy == "least-kv")


async def test_published_preset_serves_all(stack: Stack) -> None:
    """The published algorithm acts on its tick only: slower, and nobody is left behind."""
    engines = [await stack.engine(kv_tokens=6_400, speed=50.0, max_model_len=4096) for _ in range(2)]
    router = await stack.router(
        *engines, policy="pause-resume", policy_options={"preset": "paper"}, clock_speed=100.0
    )
    agents = [Agent(f"p{index}", router, 4, random.Random(index), 400, 100) for index in range(24)]
    await asyncio.wait_for(asyncio.gather(*(agent.run() for agent in agents)), 25)
    assert [agent.statuses for agent in agents] == [[200] * 4] * 24
    assert await router.programs() == {}
    assert await router.metric("thunderagent_holds_total") > 0


async def test_clients_that_fail_under_load_leave_nothing(stack: Stack) -> None:
    """Under pressure half of the clients give up at random moments, and one engine dies and returns."""
    engines = [await stack.engine(kv_tokens=6_400, speed=5.0, max_model_len=4096) for _ in range(2)]
    router = await stack.router(*engines)
    draw = random.Random(7)

    async def impatient(index: int) -> None:
        timeout = aiohttp.ClientTimeout(total=draw.uniform(0.01, 0.4))
        body = {"model": "emulated", "messages": [{"role": "user", "content": f"{index:04d}" * 900}]}
        for _ in range(4):
            body |= {"program_id": f"p{index % 12}", "stream": draw.random() < 0.5, "max_tokens": 60}
            try:
                async with router.session.post(router.url + CHAT, json=body, timeout=timeout) as reply:
                    await reply.read()
            except (aiohttp.ClientError, asyncio.TimeoutError):
                pass

    clients = asyncio.gather(*(impatient(index) for index in range(40)))
    await asyncio.sleep(0.2)
    await engines[0].kill()
    await asyncio.sleep(0.2)
    await engines[0].start()
    await asyncio.wait_for(clients, 20)
