"""From a request to what the scheduler must know of it: program, branch, model, size; one pass over the body."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from hashlib import blake2b

import msgspec
from attrs import frozen

from thunderagent.core.events import Prefix
from thunderagent.core.ids import BranchId, PrefixKey, ProgramId
from thunderagent.errors import BadProgramId, BadRequest, InvalidJson

__all__ = ["IdentityRules", "Submission", "check_program_id", "identify"]

MAX_PROGRAM_ID_BYTES = 256

MAX_MODEL_BYTES = 256
"""Of a model's name: it is kept with the turn, journalled, logged and repeated in errors."""

MAIN_BRANCH = BranchId("main")
"""The branch of a conversation that cannot be told from others."""

_PROGRAM_HEADERS = (
    "X-Program-ID",
    "X-Session-ID",
    "X-Dynamo-Session-ID",
    "x-claude-code-session-id",
    "session-id",
    "session_id",
    "thread-id",
    "x-session-affinity",
)
_PARENT_HEADERS = ("X-Dynamo-Parent-Session-ID", "x-codex-parent-thread-id", "x-parent-session-id")
_BRANCH_HEADERS = ("x-claude-code-agent-id",)
_FINAL_HEADERS = ("X-Session-Final", "X-Dynamo-Session-Final")

_BEGINNING_LIMIT = 16
"""Messages looked at for the beginning of a conversation, which is all before the first answer."""

_CACHE_MARK = re.compile(rb',?\s*"cache_control"\s*:\s*(?:\{[^{}]*\}|null)')

_Fields = dict[str, msgspec.Raw]
_DECODE_FIELDS = msgspec.json.Decoder(_Fields)
_DECODE_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_ENCODE = msgspec.json.Encoder()


class _Message(msgspec.Struct):
    role: str = ""


_DECODE_MESSAGE = msgspec.json.Decoder(_Message)


@frozen
class IdentityRules:
    """``shared_fields``: body fields that name a program only because the operator says so (many runs share one)."""

    shared_fields: tuple[str, ...] = ()


@frozen
class Submission:
    """A parsed request. ``body`` is what to send on: the client's own bytes but for the program id."""

    program: ProgramId | None
    branch: BranchId
    model: str | None
    is_stream: bool
    is_final: bool
    """The client says that this is the program's last turn."""
    prefixes: tuple[Prefix, ...]
    body: bytes
    drops_usage: bool
    """Usage was asked for on the client's behalf: its event is not for the client."""


def check_program_id(value: object, where: str) -> ProgramId:
    """A usable program id.

    Raises:
        BadProgramId: not text of 1 to 256 bytes without control characters.
    """
    if not isinstance(value, str):
        raise BadProgramId(f"{where} must be a string, got {type(value).__name__}", param=where)
    size_bytes = len(value.encode("utf-8", "surrogatepass"))
    if not 0 < size_bytes <= MAX_PROGRAM_ID_BYTES:
        raise BadProgramId(f"{where} must have 1 to {MAX_PROGRAM_ID_BYTES} bytes, got {size_bytes}", param=where)
    if not value.isprintable():
        raise BadProgramId(f"{where} must not contain control or unprintable characters", param=where)
    return ProgramId(value)


def identify(
    path: str, headers: Mapping[str, str], body: bytes, rules: IdentityRules, *, inject_usage: bool = False
) -> Submission:
    """Read a request. ``path`` is the API's (``/v1/chat/completions``); ``inject_usage``: ask for usage in streams.

    Raises:
        InvalidJson: the body is not a JSON object.
        BadProgramId: the id, wherever it came from, is unusable.
        BadRequest: the model's name is too long.
    """
    fields = _parse(body)
    model = _model(fields)
    body_id, changed = _take_program_id(fields)
    injected = False
    program, branch, is_child = _program_of(body_id, headers, fields, rules)
    is_stream = _value(fields, "stream") is True
    if inject_usage and is_stream:
        injected = _inject_usage(path, fields)
    prefixes: tuple[Prefix, ...] = ()
    if program is not None:
        beginning, prefixes = _beginning(path, fields)
        branch = branch or beginning
    return Submission(
        program=program,
        branch=branch or MAIN_BRANCH,
        model=model,
        is_stream=is_stream,
        is_final=not is_child and any(headers.get(name, "").lower() == "true" for name in _FINAL_HEADERS),
        prefixes=prefixes,
        body=_ENCODE.encode(fields) if changed or injected else body,
        drops_usage=injected,
    )


def _parse(body: bytes) -> _Fields:
    if not body:
        raise InvalidJson("the body is empty; a JSON object is expected")
    try:
        return _DECODE_FIELDS.decode(body)
    except msgspec.ValidationError:
        raise InvalidJson("the body is not a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _parse_leniently(body, error)
    except RecursionError:
        raise InvalidJson("the body is nested too deeply") from None


def _parse_leniently(body: bytes, error: Exception) -> _Fields:
    """What Python's own parser takes, and so vLLM: escapes of half a surrogate pair, which JavaScript clients write
    that cut a text amid an emoji, and NaN. Raises InvalidJson with the first parser's error."""
    try:
        fields = json.loads(body)
        if not isinstance(fields, dict):
            raise InvalidJson("the body is not a JSON object")
        _ENCODE.encode(list(fields))  # keys are written as text
    except RecursionError:
        raise InvalidJson("the body is nested too deeply") from None
    except ValueError:
        raise InvalidJson(f"the body is not valid JSON: {error}") from None
    return {key: msgspec.Raw(json.dumps(value).encode()) for key, value in fields.items()}


def _value(fields: _Fields, name: str) -> object:
    """A small field's value; None where it is absent or not decodable."""
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        value: object = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return value


def _model(fields: _Fields) -> str | None:
    """The model that is asked for; None where the field is absent or no text, which the backend answers.

    Raises:
        BadRequest: its name is over ``MAX_MODEL_BYTES``.
    """
    model = _value(fields, "model")
    if not isinstance(model, str):
        return None
    size_bytes = len(model.encode("utf-8", "surrogatepass"))
    if size_bytes > MAX_MODEL_BYTES:
        raise BadRequest(f"model must have at most {MAX_MODEL_BYTES} bytes, got {size_bytes}", param="model")
    return model


def _own_id(fields: _Fields, where: str) -> ProgramId | None:
    """The id in a field that is there to name the program; null names none.

    Raises:
        BadProgramId: unusable, text that is no Unicode (half of a surrogate pair) included.
    """
    try:
        value: object = msgspec.json.decode(fields["program_id"])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise BadProgramId(f"{where} is not valid JSON text", param=where) from None
    return None if value is None else check_program_id(value, where)


def _take_program_id(fields: _Fields) -> tuple[ProgramId | None, bool]:
    """Remove ``program_id`` and ``extra_body.program_id``; the first names the program. Whether any was there."""
    found: ProgramId | None = None
    changed = False
    if "program_id" in fields:
        found, changed = _own_id(fields, "program_id"), True
        del fields["program_id"]
    extra = fields.get("extra_body")
    if extra is not None:
        try:
            nested = _parse(bytes(extra))
        except InvalidJson:
            return found, changed
        if "program_id" in nested:
            changed = True
            if found is None:
                found = _own_id(nested, "extra_body.program_id")
            del nested["program_id"]
            if nested:
                fields["extra_body"] = msgspec.Raw(_ENCODE.encode(nested))
            else:
                del fields["extra_body"]
    return found, changed


def _program_of(
    body_id: ProgramId | None, headers: Mapping[str, str], fields: _Fields, rules: IdentityRules
) -> tuple[ProgramId | None, BranchId | None, bool]:
    """Program, branch if a header names it, and whether the request is a child session's."""
    branch: BranchId | None = None
    for name in _BRANCH_HEADERS:
        if value := headers.get(name):
            branch = BranchId(str(check_program_id(value, name)))
    if body_id is not None:
        return body_id, branch, False
    for name in _PROGRAM_HEADERS:
        named = headers.get(name)
        if not named:
            continue
        session = check_program_id(named, name)
        for parent_name in _PARENT_HEADERS:
            parent = headers.get(parent_name)
            if parent and parent != session:
                return check_program_id(parent, parent_name), BranchId(str(session)), True
        return session, branch, False
    metadata = _value(fields, "metadata") if "metadata" in fields else None
    if isinstance(metadata, dict) and isinstance(metadata.get("session_id"), str) and metadata["session_id"]:
        return check_program_id(metadata["session_id"], "metadata.session_id"), branch, False
    for name in rules.shared_fields:
        shared = _value(fields, name)
        if isinstance(shared, str) and shared:
            return check_program_id(shared, name), branch, False
    return None, branch, False


def _inject_usage(path: str, fields: _Fields) -> bool:
    """Ask for usage in a stream of chat or text completions that does not ask itself."""
    if not path.endswith("/completions"):
        return False
    options = _value(fields, "stream_options")
    if options is not None and not isinstance(options, dict):
        return False
    if options and options.get("include_usage"):
        return False
    fields["stream_options"] = msgspec.Raw(_ENCODE.encode({**(options or {}), "include_usage": True}))
    return True


def _beginning(path: str, fields: _Fields) -> tuple[BranchId, tuple[Prefix, ...]]:
    """The conversation's fingerprint, from the raw bytes of all before its first answer, and the stretches of it
    that other conversations may share: tools and system prompt, then the first prompt."""
    raw = fields.get("input" if path.endswith("/responses") else "messages")
    if raw is None or "previous_response_id" in fields:
        return MAIN_BRANCH, ()
    try:
        messages = _DECODE_LIST.decode(raw)
    except msgspec.DecodeError:
        return MAIN_BRANCH, ()
    # Tools are part of the prompt but not of what the conversation is: they may change under way.
    conversation, prompt, size_bytes = blake2b(digest_size=8), blake2b(digest_size=8), 0
    for name in ("tools", "system", "instructions"):
        if name in fields:
            part = _without_cache_marks(memoryview(fields[name]))
            prompt.update(part)
            size_bytes += len(part)
            if name != "tools":
                conversation.update(part)
    prefixes: list[Prefix] = []
    for message, role in _until_answer(messages):
        if role not in ("system", "developer") and size_bytes and not prefixes:
            prefixes.append(Prefix(PrefixKey(prompt.hexdigest()), size_bytes))
            size_bytes = 0
        part = _without_cache_marks(message)
        conversation.update(part)
        prompt.update(part)
        size_bytes += len(message)
    if size_bytes:
        prefixes.append(Prefix(PrefixKey(prompt.hexdigest()), size_bytes))
    return BranchId(conversation.hexdigest()), tuple(prefixes)


def _without_cache_marks(part: memoryview) -> bytes:
    """Clients of the messages API move their cache_control marks along from turn to turn."""
    raw = part.tobytes()
    return _CACHE_MARK.sub(b"", raw) if b'"cache_control"' in raw else raw


def _until_answer(messages: list[msgspec.Raw]) -> Iterator[tuple[memoryview, str]]:
    for message in messages[:_BEGINNING_LIMIT]:
        try:
            role = _DECODE_MESSAGE.decode(message).role
        except (msgspec.DecodeError, UnicodeDecodeError):
            role = ""
        if role not in ("system", "developer", "user"):
            return
        yield memoryview(message), role
