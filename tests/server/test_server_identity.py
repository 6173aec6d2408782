"""Which program and which conversation a request belongs to."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from multidict import CIMultiDict
from router_harness import CHAT, Stack, chat

from thunderagent.errors import BadProgramId
from thunderagent.identity import IdentityRules, Submission, identify

PRECEDENCE: list[tuple[str, str]] = [
    ("body", "program_id"),
    ("extra", "program_id"),
    ("header", "X-Program-ID"),
    ("header", "X-Session-ID"),
    ("header", "X-Dynamo-Session-ID"),
    ("header", "x-claude-code-session-id"),
    ("header", "session-id"),
    ("header", "session_id"),
    ("header", "thread-id"),
    ("header", "x-session-affinity"),
    ("metadata", "session_id"),
    ("body", "user"),
]


def request_of(sources: list[tuple[str, str]]) -> tuple[CIMultiDict[str], dict[str, Any]]:
    """Header and body that name a program in each of these ways, by the way's own name."""
    headers: CIMultiDict[str] = CIMultiDict()
    body: dict[str, Any] = {"messages": []}
    for kind, name in sources:
        value = f"{kind}-{name}"
        if kind == "header":
            headers[name] = value
        elif kind == "body":
            body[name] = value
        else:
            body[{"extra": "extra_body"}.get(kind, kind)] = {name: value}
    return headers, body


def identified(body: dict[str, Any], headers: dict[str, str] | CIMultiDict[str], *shared: str) -> Submission:
    """What a chat request is taken for."""
    return identify(CHAT, CIMultiDict(headers), msgspec.json.encode(body), IdentityRules(shared))


@pytest.mark.parametrize("index", range(len(PRECEDENCE)))
def test_earlier_source_of_identity_wins(index: int) -> None:
    """Of all that name a program the first in the order of the design counts."""
    headers, body = request_of(PRECEDENCE[index:])
    kind, name = PRECEDENCE[index]
    assert identified(body, headers, "user").program == f"{kind}-{name}"


@pytest.mark.parametrize("field", ["user", "prompt_cache_key"])
def test_shared_fields_name_a_program_only_when_asked(field: str) -> None:
    """Many runs share a user or a cache key: without --identify-by they name nothing."""
    assert identified({field: "u"}, {}).program is None
    assert identified({field: "u"}, {}, field).program == "u"


@pytest.mark.parametrize(
    ("headers", "program", "branch"),
    [
        ({"x-claude-code-session-id": "s", "x-claude-code-agent-id": "a"}, "s", "a"),
        ({"X-Dynamo-Session-ID": "child", "X-Dynamo-Parent-Session-ID": "parent"}, "parent", "child"),
        ({"session-id": "child", "x-codex-parent-thread-id": "parent"}, "parent", "child"),
        ({"X-Session-ID": "child", "x-parent-session-id": "parent"}, "parent", "child"),
        ({"X-Session-ID": "same", "x-parent-session-id": "same"}, "same", "main"),
    ],
)
def test_sub_agent_is_a_branch_of_its_parents_program(headers: dict[str, str], program: str, branch: str) -> None:
    """A sub-agent's session is a conversation inside the parent's program."""
    found = identified({}, headers)
    assert (found.program, found.branch) == (program, branch)


def test_conversations_are_told_apart_by_their_beginning() -> None:
    """The turns of one conversation share a branch as it grows; another system prompt or first prompt is another."""

    def branch(*texts: str, system: str = "s") -> str:
        roles = ["user", "assistant", "user", "assistant"]
        messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
        return identified(
            {"program_id": "p", "messages": [{"role": "system", "content": system}, *messages]}, {}
        ).branch

    first = branch("task")
    assert branch("task", "answer", "more") == first
    assert branch("task", "other answer") == first
    assert branch("other task") != first
    assert branch("task", system="t") != first


def test_session_final_header_is_read() -> None:
    """The last turn of a session says so; a sub-agent's last turn does not end the program."""
    assert identified({"program_id": "p"}, {"X-Session-Final": "true"}).is_final
    assert identified({"program_id": "p"}, {"X-Dynamo-Session-Final": "True"}).is_final
    assert not identified({"program_id": "p"}, {"X-Session-Final": "false"}).is_final
    child = {"X-Session-ID": "c", "x-parent-session-id": "p", "X-Session-Final": "true"}
    assert not identified({}, child).is_final


@pytest.mark.parametrize("program", ["p", "x" * 256, "a/b c", "é", "default", "0"])
def test_printable_text_up_to_256_bytes_is_an_id(program: str) -> None:
    """Any printable text names a program, in the body and as it is."""
    assert identified({"program_id": program}, {}).program == program


BAD_IDS: list[Any] = ["", "x" * 257, "é" * 129, "a\nb", "a\x00", "a\x7f", "\u200e", 7, 1.5, True, ["p"], {"a": 1}]


@pytest.mark.parametrize("program", BAD_IDS)
@pytest.mark.parametrize("where", ["program_id", "extra_body.program_id"])
def test_unusable_id_is_refused(program: Any, where: str) -> None:
    """An id that is no printable text of 1 to 256 bytes is an error that names its field, never another id."""
    body = {"program_id": program}
    with pytest.raises(BadProgramId) as caught:
        identified(body if where == "program_id" else {"extra_body": body}, {})
    assert caught.value.param == where


@pytest.mark.parametrize("raw", [b'{"program_id":"\\ud800"}', b'{"program_id":"\xff"}', b'{"program_id":NaN}'])
def test_undecodable_id_is_refused(raw: bytes) -> None:
    """An id that cannot even be read is no missing id."""
    with pytest.raises(BadProgramId):
        identify(CHAT, {}, raw, IdentityRules())


@pytest.mark.parametrize("text", [b'"half \\ud83d"', b'"\\udc80"', b"NaN", b'{"k":["\\ud800x"]}'])
def test_json_as_python_writes_it_is_taken(text: bytes) -> None:
    """Half a surrogate pair and NaN are no JSON for a strict parser; clients send them and vLLM reads them."""
    raw = b'{"model":"m", "messages":[],"x":' + text + b"}"
    found = identify(CHAT, {"X-Program-ID": "p"}, raw, IdentityRules())
    assert (found.program, found.model, found.body) == ("p", "m", raw)
    named = identify(CHAT, {}, b'{"program_id":"p",' + raw[1:], IdentityRules())
    assert (named.program, json.loads(named.body, parse_constant=str)) == ("p", json.loads(raw, parse_constant=str))


@pytest.mark.parametrize(
    "headers", [{"X-Program-ID": "x" * 257}, {"session_id": "a\tb"}, {"x-claude-code-agent-id": "\t-"}]
)
def test_unusable_id_in_a_header_is_refused(headers: dict[str, str]) -> None:
    """The same rules hold for headers, of programs and of branches."""
    with pytest.raises(BadProgramId):
        identified({"messages": []}, headers)


async def test_requests_without_id_share_nothing(stack: Stack) -> None:
    """A turn without an id belongs to no program, not even while it runs."""
    engine = await stack.engine(speed=1.0)
    router = await stack.router(engine)
    turns = [router.start_chat("hi", max_tokens=8) for _ in range(3)]
    while router.running < 3:
        assert await router.programs() == {}
    assert [(await turn)[0] for turn in turns] == [200] * 3
    assert await router.programs() == {}


@pytest.mark.parametrize("kind_and_name", PRECEDENCE[2:10])
async def test_every_header_of_identity_works_over_http(stack: Stack, kind_and_name: tuple[str, str]) -> None:
    """Each agent's own header names the program, through a real HTTP server and back to the backend."""
    fake = await stack.fake()
    router = await stack.router(fake)
    await router.post(CHAT, chat(), headers={kind_and_name[1]: "me"})
    assert set(await router.programs()) == {"me"}
    assert fake.exchanges[0].headers["x-session-id"] == "me"
