"""What test_e2e_litellm runs in a process of its own: litellm takes seconds to import. Prints JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import litellm

BASE = {"model": "hosted_vllm/emulated", "api_base": f"{sys.argv[1]}/v1", "api_key": "unused", "num_retries": 0}
TASK = [{"role": "user", "content": "Say something."}]
TOOL_TASK = {"role": "user", "content": "Please list the folder."}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "bash",
            "parameters": {"type": "object", "properties": {"command": {"type": "string"}}},
        },
    }
]


def _of(program: str) -> dict[str, Any]:
    return {**BASE, "extra_body": {"program_id": program}}


def plain() -> dict[str, Any]:
    """One turn."""
    answer = litellm.completion(messages=TASK, max_tokens=5, **_of("litellm-plain"))
    return {"text": bool(answer.choices[0].message.content), "tokens": answer.usage.completion_tokens}


def tools() -> dict[str, Any]:
    """A tool call, and the turn after it."""
    messages: list[Any] = [TOOL_TASK]
    first = litellm.completion(messages=messages, tools=TOOLS, **_of("litellm-tools"))
    (call,) = first.choices[0].message.tool_calls
    messages += [first.choices[0].message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": ". .."}]
    second = litellm.completion(messages=messages, tools=TOOLS, **_of("litellm-tools"))
    return {
        "call": [call.function.name, json.loads(call.function.arguments)],
        "reason": first.choices[0].finish_reason,
        "end": second.choices[0].message.content,
    }


def stream() -> dict[str, Any]:
    """Pieces, with the usage that was asked for at the end."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(litellm.completion(messages=TASK, max_tokens=6, **options, **_of("litellm-stream")))
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    usages = [chunk.usage.completion_tokens for chunk in chunks if getattr(chunk, "usage", None)]
    return {"pieces": len(texts) > 1, "usage": usages[-1:]}


async def many() -> list[int]:
    """Eight programs at once."""
    runs = (litellm.acompletion(messages=TASK, max_tokens=4, **_of(f"litellm-{number}")) for number in range(8))
    return [answer.usage.completion_tokens for answer in await asyncio.gather(*runs)]


def errors() -> list[object]:
    """The class that litellm makes of a refusal."""
    try:
        litellm.completion(messages=TASK, **{**_of("litellm-error"), "model": "hosted_vllm/nosuch"})
    except Exception as error:
        return [type(error).__name__, getattr(error, "status_code", None)]
    return []


if __name__ == "__main__":
    found = {"plain": plain(), "tools": tools(), "stream": stream(), "many": asyncio.run(many()), "errors": errors()}
    sys.stdout.write(json.dumps(found) + "\n")
