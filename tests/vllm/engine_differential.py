"""One sequence of requests on two engines: vLLM's scheduler (``engine_replay.py``) and the emulated one."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import attrs

from examples.vllm_cpu.prepare import environment_python
from examples.vllm_cpu.server import server_environment
from thunderagent.emulator.engine import Engine, EngineRequest, EngineSettings, SchedulingPolicy
from thunderagent.emulator.timing import TimingModel

TIMING = TimingModel(1.0, 0.0, 0.0, 0.0, 0.0)
REPLAY = Path(__file__).with_name("engine_replay.py")
REPLAY_SECONDS = 500.0

_names: dict[tuple[int, tuple[int, ...]], int] = {}


def block_names(tokens: Sequence[int], block_size: int) -> list[int]:
    """A number for each full block of ``tokens``: the same where all tokens up to the block's end are the same."""
    chain: list[int] = []
    name = 0
    for start in range(0, len(tokens) - block_size + 1, block_size):
        name = _names.setdefault((name, tuple(tokens[start : start + block_size])), len(_names) + 1)
        chain.append(name)
    return chain


@attrs.frozen
class Arrival:
    """A request: it arrives before step ``step``, and generates the tokens of ``output``."""

    id: str
    prompt: list[int]
    output: list[int]
    step: int = 0
    priority: int = 0


@attrs.frozen
class Abort:
    """The end of request ``id``: before step ``step``, or ``amid``: while its batch runs."""

    id: str
    step: int
    amid: bool = False


@attrs.frozen
class Load:
    """Settings of an engine, under vLLM's names, and what is done to it. Arrivals are in the order of their steps.

    ``run_ahead``: vLLM plans each step before it knows the tokens of the one before it, its default on GPUs; the CPU
    build does not, and the emulated engine cannot.
    """

    requests: list[Arrival]
    num_gpu_blocks: int = 33
    block_size: int = 16
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 2048
    policy: str = "fcfs"
    reserve_full_prompt: bool = True
    prefix_caching: bool = True
    run_ahead: bool = False
    aborts: list[Abort] = attrs.field(factory=list)
    resets: list[int] = attrs.field(factory=list)
    """Steps before which the prefix cache is reset (which only works while nothing runs)."""

    def __attrs_post_init__(self) -> None:
        room = (self.num_gpu_blocks - 1) * self.block_size
        for request in self.requests:
            if len(request.prompt) + len(request.output) > room:
                raise ValueError(f"request {request.id} never fits {room} tokens: vLLM would not come to an end")


@attrs.define
class Step:
    """What an engine did in a step, and what it left."""

    scheduled: list[list[Any]]
    """Ids and tokens in the order of the batch."""
    admitted: list[list[Any]]
    """Ids and cached tokens of requests that began to run, for the first time or after a preemption."""
    preempted: list[str]
    finished: list[str]
    running: list[str]
    waiting: list[str]
    free: list[int | None]
    """Names of what the free blocks hold, the block that is taken first in front; None: nothing that can be found."""


@attrs.define
class Story:
    """All steps, and counters at the end."""

    steps: list[Step]
    counters: dict[str, int]


def replay_vllm(loads: Iterable[Load]) -> list[Story]:
    """The stories of all loads, told by vLLM in one child process.

    Raises:
        NotPrepared: ``make vllm-cpu`` has not run.
    """
    sequences = [attrs.asdict(load) for load in loads]
    for sequence in sequences:
        for request in sequence["requests"]:
            request["names"] = block_names(request["prompt"] + request["output"], sequence["block_size"])
    done = subprocess.run(
        [str(environment_python()), str(REPLAY)],
        input=json.dumps(sequences),
        env={**server_environment(os.environ), "VLLM_LOGGING_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        timeout=REPLAY_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return [Story([Step(**step) for step in one["steps"]], one["counters"]) for one in json.loads(done.stdout)]


class _Recorded(Engine):
    """An engine that writes down what it tells nobody."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings, TIMING)
        self.preempted: list[str] = []
        self.admitted: list[list[Any]] = []

    def _preempt(self) -> Any:
        victim = super()._preempt()
        self.preempted.append(victim.request.id)
        return victim

    def _start(self, sequence: Any, budget: int) -> int:
        count = super()._start(sequence, budget)
        if count:
            self.admitted.append([sequence.request.id, sequence.computed_tokens])
        return count


def replay_emulated(load: Load) -> Story:
    """The story of a load, told by the emulated engine; its books are checked after every step."""
    settings = EngineSettings(
        num_gpu_blocks=load.num_gpu_blocks,
        block_size=load.block_size,
        max_num_seqs=load.max_num_seqs,
        max_num_batched_tokens=load.max_num_batched_tokens,
        scheduling_policy=SchedulingPolicy(load.policy),
        reserve_full_prompt=load.reserve_full_prompt,
        prefix_caching=load.prefix_caching,
    )
    engine = _Recorded(settings)
    steps: list[Step] = []
    last = max(request.step for request in load.requests)
    while len(steps) <= last or not engine.idle:
        steps.append(_step(engine, load, len(steps)))
        engine.check()
    counters = attrs.asdict(engine.cache.counters)
    return Story(steps, counters)


def _step(engine: _Recorded, load: Load, number: int) -> Step:
    if number in load.resets:
        engine.reset_prefix_cache()
    for request in load.requests:
        if request.step == number:
            names = block_names(request.prompt + request.output, load.block_size)
            engine.add(
                EngineRequest(request.id, len(request.prompt), len(request.output), names, request.priority),
                float(number),
            )
    for abort in load.aborts:
        if abort.step == number and not abort.amid:
            engine.abort(abort.id)
    engine.preempted, engine.admitted = [], []
    scheduled: list[list[Any]] = []
    finished: list[str] = []
    if engine.begin_step(float(number)) is not None:
        assert engine._step is not None
        scheduled = [[sequence.request.id, sequence.scheduled_tokens] for sequence in engine._step.batch]
    for abort in load.aborts:
        if abort.step == number and abort.amid:
            engine.abort(abort.id)
    if scheduled:
        finished = [output.request_id for output in engine.end_step(float(number)).outputs if output.finish_reason]
    return Step(
        scheduled,
        engine.admitted,
        engine.preempted,
        finished,
        [sequence.request.id for sequence in engine._running],
        [sequence.request.id for sequence in engine._waiting],
        engine.cache.free_contents(),
    )


def first_difference(vllm: Story, emulated: Story) -> str | None:
    """Where two stories part, in words; None where they are the same."""
    for number, (theirs, ours) in enumerate(zip_longest(vllm.steps, emulated.steps)):
        if theirs is None or ours is None:
            return f"vLLM takes {len(vllm.steps)} steps, the emulated engine {len(emulated.steps)}"
        for field in attrs.fields(Step):
            left, right = getattr(theirs, field.name), getattr(ours, field.name)
            if left != right:
                return f"step {number}, {field.name}: vLLM {left}, emulated {right}"
    if vllm.counters != emulated.counters:
        return f"counters: vLLM {vllm.counters}, emulated {emulated.counters}"
    return None


def random_load(seed: int) -> Load:
    """Conversations that grow, branch and repeat, on an engine that is mostly too small for them."""
    chance = random.Random(seed)
    block_size = chance.choice((16, 16, 16, 4))
    blocks = chance.randint(4, 40)
    room = blocks * block_size
    max_num_seqs = chance.randint(1, 8)
    histories = [_tokens(chance, chance.randint(1, room // 2)) for _ in range(chance.randint(1, 3))]
    requests: list[Arrival] = []
    step = 0
    for number in range(chance.randint(2, 24)):
        step += chance.choice((0, 0, 1, 1, 2, 5, 20))
        history = chance.choice(histories)
        prompt = history + _tokens(chance, chance.randint(0, room // 4))
        if chance.random() < 0.15:
            prompt = chance.choice(requests).prompt if requests else prompt
        if chance.random() < 0.15:
            prompt = prompt[: chance.randint(1, len(prompt))]
        output = _tokens(chance, chance.randint(1, chance.choice((2, 20, max(2, room // 3)))))
        prompt = prompt[: room - 1]
        output = output[: room - len(prompt)]
        requests.append(Arrival(f"r{number}", prompt, output, step, chance.choice((0, 0, 1, 2, -1))))
        if chance.random() < 0.6:
            histories.append(prompt + output)
    aborted = [request for request in requests if chance.random() < chance.choice((0, 0, 0.2))]
    return Load(
        requests,
        num_gpu_blocks=blocks + 1,
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max(max_num_seqs, chance.choice((8, 16, 40, 64, 256, 2048))),
        policy=chance.choice(("fcfs", "priority")),
        reserve_full_prompt=chance.random() < 0.75,
        prefix_caching=chance.random() < 0.95,
        aborts=[Abort(one.id, one.step + chance.randint(0, 12), chance.random() < 0.5) for one in aborted],
        resets=[chance.randint(0, step + 10)] if chance.random() < 0.2 else [],
    )


def agent_load(seed: int, agents: int) -> Load:
    """Agents of six turns each, on an engine that holds about four of them at their longest (16,384 tokens)."""
    chance = random.Random(seed)
    system = _tokens(chance, 300)
    requests: list[Arrival] = []
    for agent in range(agents):
        step, history = chance.randint(0, 40), system + _tokens(chance, 900)
        for turn in range(6):
            output = _tokens(chance, chance.randint(20, 60))
            requests.append(Arrival(f"a{agent}t{turn}", history, output, step))
            history = history + output + _tokens(chance, chance.randint(100, 700))
            step += len(output) + chance.randint(10, 60)
    requests.sort(key=lambda request: request.step)
    return Load(requests, num_gpu_blocks=1025, max_num_seqs=64)


def _tokens(chance: random.Random, count: int) -> list[int]:
    """Tokens of a small vocabulary, half of the time all the same: contents repeat by chance as well."""
    vocabulary = chance.choice((1, 1000))
    return [chance.randint(1, vocabulary) for _ in range(count)]
