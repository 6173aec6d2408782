"""What the emulated model says: the tokens of a reply and the text that each of them shows."""

from __future__ import annotations

import attrs

from thunderagent.emulator.engine import FinishReason
from thunderagent.emulator.script import ScriptTurn
from thunderagent.emulator.tokens import (
    CALL_CLOSE,
    END,
    ToolCall,
    call_header,
    count_tokens,
    filler,
    pad,
    render_body,
    split_tokens,
)

__all__ = ["Delta", "Reply", "filler_reply", "scripted_reply"]


@attrs.frozen
class Delta:
    """What a token adds to the reply as a client sees it.

    ``call`` None: ``text`` is content. Else ``text`` belongs to the arguments of that tool call; with ``opens`` it is
    empty and the call begins.
    """

    text: str
    call: int | None = None
    opens: bool = False


@attrs.frozen
class Reply:
    """A planned reply of ``len(deltas)`` tokens.

    ``deltas[i]`` is what token i shows (nothing for template tokens, several where a script asks for fewer tokens
    than its text has). ``body`` are the bytes that the reply adds to the sequence. ``content`` and ``tool_calls`` are
    what the client receives in the end: a reply cut at its token limit (``finish_reason`` length) shows what fits.
    """

    content: str
    tool_calls: tuple[ToolCall, ...]
    deltas: tuple[tuple[Delta, ...], ...]
    body: bytes
    finish_reason: FinishReason

    @property
    def tokens(self) -> int:
        """Completion tokens."""
        return len(self.deltas)


def filler_reply(prompt: bytes, tokens: int, *, stops: bool) -> Reply:
    """Deterministic words, ``tokens`` tokens long; the last token is the end where the model ``stops`` by itself."""
    text = filler(prompt, tokens - 1 if stops else tokens)
    deltas: list[tuple[Delta, ...]] = [(Delta(piece),) for piece in split_tokens(text)]
    body = text.encode()
    if stops:
        deltas.append(())
        body += END
    return Reply(text, (), tuple(deltas), body, FinishReason.STOP if stops else FinishReason.LENGTH)


def scripted_reply(turn: ScriptTurn, max_tokens: int) -> Reply:
    """A script's turn, cut after ``max_tokens`` tokens."""
    content, calls = turn.content or "", turn.tool_calls
    deltas: list[tuple[Delta, ...]] = [(Delta(piece),) for piece in split_tokens(content)]
    for index, call in enumerate(calls):
        deltas += [()] * (count_tokens(call_header(call)) - 1)
        deltas.append((Delta("", index, opens=True),))
        deltas += [(Delta(piece, index),) for piece in split_tokens(call.arguments)]
        deltas += [()] * count_tokens(pad(CALL_CLOSE))
    deltas.append(())
    if turn.completion_tokens is not None:
        deltas = _spread(deltas, turn.completion_tokens)
    body = render_body(content, calls) + END
    if len(deltas) <= max_tokens:
        return Reply(content, calls, tuple(deltas), body, FinishReason.STOP)
    return _cut(deltas[:max_tokens], calls, body)


def _spread(deltas: list[tuple[Delta, ...]], tokens: int) -> list[tuple[Delta, ...]]:
    """The same deltas over another number of tokens; the last token stays the end."""
    shown = [delta for token in deltas for delta in token]
    slots = max(1, tokens - 1)
    spread: list[tuple[Delta, ...]] = [
        tuple(shown[len(shown) * slot // slots : len(shown) * (slot + 1) // slots]) for slot in range(slots)
    ]
    return [*spread, ()] if tokens > 1 else spread


def _cut(deltas: list[tuple[Delta, ...]], calls: tuple[ToolCall, ...], body: bytes) -> Reply:
    content = ""
    opened: list[str] = []
    for token in deltas:
        for delta in token:
            if delta.call is None:
                content += delta.text
            elif delta.opens:
                opened.append("")
            else:
                opened[-1] += delta.text
    shown = tuple(ToolCall(call.name, text) for call, text in zip(calls, opened, strict=False))
    return Reply(content, shown, tuple(deltas), body, FinishReason.LENGTH)
