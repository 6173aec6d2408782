"""A stand-in for a tokenizer and chat template: four bytes are a token, and histories extend one another.

Every message is rendered to bytes and padded to whole tokens, so that the prompt of the next turn begins with the
bytes of this turn's prompt and reply: a client that echoes the assistant message hits the prefix cache exactly where
a real engine's would. Nothing here costs more than a pass over the bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

import attrs
import msgspec

__all__ = [
    "BYTES_PER_TOKEN",
    "Message",
    "ToolCall",
    "block_hashes",
    "count_tokens",
    "filler",
    "pad",
    "render_body",
    "render_prompt",
    "split_tokens",
    "token_bytes",
]

BYTES_PER_TOKEN = 4

END = b"<|e|"
"""One token that closes a message; the model generates it where it stops by itself."""

CALL_OPEN = b"<tool_call>\n"
CALL_CLOSE = b"\n</tool_call>"

_WORDS = tuple(
    b" " + three
    for three in (
        b"the",
        b"run",
        b"was",
        b"for",
        b"key",
        b"set",
        b"log",
        b"and",
        b"but",
        b"not",
        b"all",
        b"new",
        b"old",
    )
)


@attrs.frozen
class ToolCall:
    """A call as a model writes it: ``arguments`` is JSON text."""

    name: str
    arguments: str


@attrs.frozen
class Message:
    """A message of any of the APIs, reduced to what a chat template shows."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()


def pad(text: bytes) -> bytes:
    """``text`` with NUL bytes up to a whole token."""
    return text + b"\0" * (-len(text) % BYTES_PER_TOKEN)


def count_tokens(text: bytes) -> int:
    """Tokens of rendered bytes."""
    return -(-len(text) // BYTES_PER_TOKEN)


def call_header(call: ToolCall) -> bytes:
    """The tokens of a tool call that come before its arguments."""
    return pad(CALL_OPEN + call.name.encode())


def render_body(content: str, tool_calls: Iterable[ToolCall]) -> bytes:
    """An assistant message between its header and its end, in whole tokens."""
    parts = [pad(content.encode("utf-8", "replace"))]
    for call in tool_calls:
        parts += (call_header(call), pad(call.arguments.encode("utf-8", "replace")), pad(CALL_CLOSE))
    return b"".join(parts)


def render_prompt(messages: Sequence[Message], tools: object = None) -> bytes:
    """A conversation up to and including the header of the assistant's next message, in whole tokens.

    ``tools`` (any JSON value, None or empty for none) stand before the first message, as in most chat templates.
    """
    parts: list[bytes] = []
    if tools:
        parts += (pad(b"<|tools|>" + msgspec.json.encode(tools)), END)
    for message in messages:
        parts += (_header(message.role), render_body(message.content, message.tool_calls), END)
    parts.append(_header("assistant"))
    return b"".join(parts)


def _header(role: str) -> bytes:
    return pad(f"<|{role}|>\n".encode())


def block_hashes(sequence: bytes, block_size: int) -> list[int]:
    """Hash chain over the full blocks of rendered bytes: entry i stands for everything up to the end of block i.

    Uses Python's 64-bit hashes, salted per process: they never leave it. About 0.3 us per block.
    """
    width = block_size * BYTES_PER_TOKEN
    chain: list[int] = []
    value = 0
    for start in range(0, len(sequence) - width + 1, width):
        value = hash((value, sequence[start : start + width]))
        chain.append(value)
    return chain


def filler(prompt: bytes, tokens: int) -> str:
    """Text of exactly ``tokens`` tokens, the same for the same prompt."""
    state = zlib.crc32(prompt) or 1
    words = _WORDS
    count = len(words)
    picked: list[bytes] = []
    for _ in range(tokens):
        # Knuth's multiplicative generator: cheap, and enough to look like words.
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        picked.append(words[(state >> 16) % count])
    return b"".join(picked).decode()


def split_tokens(text: str) -> list[str]:
    """Text as the pieces that its tokens show when streamed; a character belongs to the token that completes it."""
    if text.isascii():
        return [text[start : start + BYTES_PER_TOKEN] for start in range(0, len(text), BYTES_PER_TOKEN)]
    pieces = [""] * count_tokens(text.encode("utf-8", "replace"))
    end = 0
    for character in text:
        end += len(character.encode("utf-8", "replace"))
        pieces[(end - 1) // BYTES_PER_TOKEN] += character
    return pieces


def token_bytes(tokens: Sequence[int]) -> bytes:
    """The bytes of token ids, the inverse of ``token_ids``. Raises OverflowError for an id outside 0..2**32-1."""
    return b"".join(token.to_bytes(BYTES_PER_TOKEN, "little") for token in tokens)


def token_ids(text: bytes) -> list[int]:
    """Ids of the tokens of rendered bytes: the four bytes as a number."""
    padded = pad(text)
    return [
        int.from_bytes(padded[start : start + BYTES_PER_TOKEN], "little")
        for start in range(0, len(padded), BYTES_PER_TOKEN)
    ]
