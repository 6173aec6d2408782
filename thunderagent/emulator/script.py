"""Scripts: what the emulated model answers in which conversation.

A script is a JSON file::

    {"conversations": [{"match": "text in a user message", "turns": [
        {"content": "text or null", "tool_calls": [{"name": "bash", "arguments": {"command": "ls"}}],
         "completion_tokens": 60}]}]}

The engine keeps no state about conversations: the first one whose ``match`` occurs in a user message of the request
is played, and the number of assistant messages in the request says which turn; past the end the last turn repeats.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from thunderagent.emulator.tokens import Message, ToolCall

__all__ = ["Conversation", "Script", "ScriptError", "ScriptTurn", "load_script", "parse_script"]


class ScriptError(ValueError):
    """A script that can't be used: ``source`` (file), ``path`` within it, ``reason``."""

    def __init__(self, source: str, path: str, reason: str) -> None:
        super().__init__(source, path, reason)
        self.source = source
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        where = f" at {self.path}" if self.path else ""
        return f"script {self.source}{where}: {self.reason}"


@attrs.frozen
class ScriptTurn:
    """One answer. ``completion_tokens`` None: as many as the text takes, and one for the end."""

    content: str | None
    tool_calls: tuple[ToolCall, ...] = ()
    completion_tokens: int | None = None


@attrs.frozen
class Conversation:
    """The answers (at least one) of a conversation in which ``match`` occurs."""

    match: str
    turns: tuple[ScriptTurn, ...]


@attrs.frozen
class Script:
    """Conversations in the order in which they are tried."""

    conversations: tuple[Conversation, ...] = ()

    def select(self, messages: Sequence[Message]) -> ScriptTurn | None:
        """The answer to a request, None where no conversation matches. O(conversations x bytes of user messages)."""
        asked = [message.content for message in messages if message.role == "user"]
        for conversation in self.conversations:
            if any(conversation.match in text for text in asked):
                answered = sum(1 for message in messages if message.role == "assistant")
                return conversation.turns[min(answered, len(conversation.turns) - 1)]
        return None


def load_script(path: str | Path) -> Script:
    """Read a script file. Raises ScriptError for a file that can't be read or is not a script."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ScriptError(str(path), "", error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise ScriptError(str(path), "", f"not UTF-8 text: {error.reason} at byte {error.start}") from error
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        raise ScriptError(str(path), "", reason) from error
    return parse_script(value, str(path))


def parse_script(value: Any, source: str = "<script>") -> Script:
    """A script from decoded JSON. Raises ScriptError naming the path within ``value``."""
    return _Parser(source).script(value)


class _Parser:
    def __init__(self, source: str) -> None:
        self._source = source

    def script(self, value: Any) -> Script:
        self._object(value, "", {"conversations"})
        conversations = self._list(value.get("conversations"), "conversations")
        return Script(tuple(self._conversation(one, f"conversations[{i}]") for i, one in enumerate(conversations)))

    def _conversation(self, value: Any, path: str) -> Conversation:
        self._object(value, path, {"match", "turns"})
        match = self._text(value.get("match"), f"{path}.match")
        turns = self._list(value.get("turns"), f"{path}.turns")
        return Conversation(match, tuple(self._turn(one, f"{path}.turns[{i}]") for i, one in enumerate(turns)))

    def _turn(self, value: Any, path: str) -> ScriptTurn:
        self._object(value, path, {"content", "tool_calls", "completion_tokens"})
        content = value.get("content")
        if content is not None and not isinstance(content, str):
            raise self._error(f"{path}.content", f"expected text or null, got {_kind(content)}")
        calls = value.get("tool_calls") or []
        if not isinstance(calls, list):
            raise self._error(f"{path}.tool_calls", f"expected a list, got {_kind(calls)}")
        if not content and not calls:
            raise self._error(path, "needs content or tool_calls")
        tokens = value.get("completion_tokens")
        if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1):
            raise self._error(f"{path}.completion_tokens", "expected a whole number of at least 1")
        parsed = tuple(self._call(one, f"{path}.tool_calls[{i}]") for i, one in enumerate(calls))
        return ScriptTurn(content, parsed, tokens)

    def _call(self, value: Any, path: str) -> ToolCall:
        self._object(value, path, {"name", "arguments"})
        name = self._text(value.get("name"), f"{path}.name")
        arguments = value.get("arguments")
        if not isinstance(arguments, dict):
            raise self._error(f"{path}.arguments", f"expected an object, got {_kind(arguments)}")
        return ToolCall(name, json.dumps(arguments, ensure_ascii=False))

    def _object(self, value: Any, path: str, keys: set[str]) -> None:
        if not isinstance(value, Mapping):
            raise self._error(path, f"expected an object, got {_kind(value)}")
        unknown = sorted(value.keys() - keys)
        if unknown:
            raise self._error(path, f"unknown key {unknown[0]!r}; known are {', '.join(sorted(keys))}")

    def _list(self, value: Any, path: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise self._error(path, f"expected a list with at least one entry, got {_kind(value)}")
        return value

    def _text(self, value: Any, path: str) -> str:
        if not isinstance(value, str) or not value:
            raise self._error(path, f"expected a text that is not empty, got {_kind(value)}")
        return value

    def _error(self, path: str, reason: str) -> ScriptError:
        return ScriptError(self._source, path, reason)


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    names: dict[type, str] = {
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        dict: "an object",
    }
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if value == "":
        return "an empty text"
    return names.get(type(value), type(value).__name__)
