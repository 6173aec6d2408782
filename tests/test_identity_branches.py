"""Which conversation of a program a turn belongs to, told from the beginning of its messages."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from thunderagent.identity import MAIN_BRANCH, IdentityRules, Submission, identify

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
SYSTEM = {"role": "system", "content": "You fix bugs."}
TASK = {"role": "user", "content": "Fix the parser."}
OTHER_TASK = {"role": "user", "content": "Fix the lexer."}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "bash"}}]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "ok"}
TOOLS = [{"type": "function", "function": {"name": "bash"}}]


def _of(path: str = CHAT, **fields: Any) -> Submission:
    raw = json.dumps({"program_id": "p", **fields}).encode()
    return identify(path, CIMultiDict(), raw, IdentityRules())


def _size(*values: object) -> int:
    return sum(len(json.dumps(value)) for value in values)


def test_turns_of_a_growing_conversation_share_their_branch_and_prefixes() -> None:
    """Answers and tool results come and go; what stands before the first answer stays."""
    first = _of(messages=[SYSTEM, TASK], tools=TOOLS)
    later = [
        _of(messages=[SYSTEM, TASK, *[CALL, RESULT] * turns], tools=TOOLS, temperature=turns) for turns in (1, 2, 20)
    ]
    assert first.branch != MAIN_BRANCH
    assert [(turn.branch, turn.prefixes) for turn in later] == [(first.branch, first.prefixes)] * 3


@given(st.lists(st.sampled_from([TASK, OTHER_TASK, SYSTEM, CALL, RESULT]), max_size=8), st.booleans())
def test_anything_after_the_first_answer_leaves_the_branch(rest: list[dict[str, Any]], is_stream: bool) -> None:
    """For any continuation."""
    turn = _of(messages=[SYSTEM, TASK, CALL, *rest], stream=is_stream, model="m")
    assert turn.branch == _of(messages=[SYSTEM, TASK]).branch


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [SYSTEM, OTHER_TASK]},
        {"messages": [TASK]},
        {"messages": [{**SYSTEM, "content": "You review."}, TASK]},
        {"messages": [SYSTEM, TASK, TASK]},
        {"messages": []},
    ],
    ids=["task", "no system", "system", "two prompts", "empty"],
)
def test_conversation_that_begins_otherwise_is_another_branch(fields: dict[str, Any]) -> None:
    """Sub-agents have a task or a system prompt of their own."""
    assert _of(**fields).branch != _of(messages=[SYSTEM, TASK]).branch


def test_branch_says_nothing_about_the_program() -> None:
    """The fingerprint is of the conversation alone: a group of runs of one prompt shares its prefixes."""
    one, other = (
        identify(
            CHAT, CIMultiDict({"X-Program-ID": name}), json.dumps({"messages": [TASK]}).encode(), IdentityRules()
        )
        for name in ("a", "b")
    )
    assert (one.program, other.program) == ("a", "b")
    assert (one.branch, one.prefixes) == (other.branch, other.prefixes)


def test_prefixes_are_the_shared_beginning_and_then_the_prompt() -> None:
    """Two tasks under one system prompt share the first stretch and not the second; sizes are raw bytes."""
    one = _of(messages=[SYSTEM, TASK, CALL], tools=TOOLS)
    other = _of(messages=[SYSTEM, OTHER_TASK], tools=TOOLS)
    assert [prefix.size_bytes for prefix in one.prefixes] == [_size(TOOLS, SYSTEM), _size(TASK)]
    assert [prefix.size_bytes for prefix in other.prefixes] == [_size(TOOLS, SYSTEM), _size(OTHER_TASK)]
    assert one.prefixes[0] == other.prefixes[0]
    assert one.prefixes[1].key != other.prefixes[1].key


def test_conversation_without_a_system_prompt_has_one_prefix() -> None:
    """There is nothing before the prompt to share."""
    (prefix,) = _of(messages=[TASK, CALL]).prefixes
    assert prefix.size_bytes == _size(TASK)


def test_conversation_of_system_messages_only_has_one_prefix() -> None:
    """A developer message counts as a system prompt; without a user's one the whole is one stretch."""
    (prefix,) = _of(messages=[SYSTEM, {**SYSTEM, "role": "developer"}]).prefixes
    assert prefix.size_bytes == _size(SYSTEM, {**SYSTEM, "role": "developer"})


def test_messages_api_has_its_system_prompt_beside_the_messages() -> None:
    """The Anthropic shape: the same stretches, from other fields."""
    one = _of(MESSAGES, system="You fix bugs.", messages=[TASK], tools=TOOLS)
    later = _of(MESSAGES, system="You fix bugs.", messages=[TASK, {"role": "assistant", "content": "x"}], tools=TOOLS)
    other = _of(MESSAGES, system="You review.", messages=[TASK], tools=TOOLS)
    assert [prefix.size_bytes for prefix in one.prefixes] == [_size(TOOLS, "You fix bugs."), _size(TASK)]
    assert (later.branch, later.prefixes) == (one.branch, one.prefixes)
    assert other.branch != one.branch


def test_responses_api_takes_its_input_items() -> None:
    """The items before the model's first one, after the instructions."""
    begin = {"instructions": "You fix bugs.", "tools": TOOLS}
    one = _of(RESPONSES, input=[TASK], **begin)
    later = _of(RESPONSES, input=[TASK, {"type": "function_call", "name": "bash"}, TASK], **begin)
    assert one.branch != MAIN_BRANCH
    assert (later.branch, later.prefixes) == (one.branch, one.prefixes)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (RESPONSES, {"input": "Fix it."}),
        (RESPONSES, {"input": [TASK], "previous_response_id": "r"}),
        ("/v1/completions", {"prompt": "Fix it."}),
        (CHAT, {"messages": "Fix it."}),
        (CHAT, {"messages": {"role": "user"}}),
        (CHAT, {}),
    ],
)
def test_request_without_a_told_beginning_is_the_main_branch(path: str, fields: dict[str, Any]) -> None:
    """Where the beginning is elsewhere, or makes no sense, the program has one conversation."""
    turn = _of(path, **fields)
    assert (turn.branch, turn.prefixes) == (MAIN_BRANCH, ())


def test_only_the_first_sixteen_messages_are_read_for_the_beginning() -> None:
    """A transcript of a thousand user messages costs no more than sixteen."""
    messages = [{"role": "user", "content": str(number)} for number in range(1000)]
    assert _of(messages=messages).branch == _of(messages=messages[:16]).branch
    assert _of(messages=messages[:15]).branch != _of(messages=messages[:16]).branch


@pytest.mark.parametrize("message", [b'{"role": "\xff"}', b'{"role": 5}', b"5", b"null", b"{}", b'{"role": null}'])
def test_message_that_makes_no_sense_ends_the_beginning(message: bytes) -> None:
    """The backend tells what is wrong with it; the router reads what stands before it."""
    raw = b'{"program_id": "p", "messages": [%s, %s]}' % (json.dumps(TASK).encode(), message)
    turn = identify(CHAT, CIMultiDict(), raw, IdentityRules())
    assert turn.branch == _of(messages=[TASK]).branch


def test_moving_cache_marks_keep_the_branch() -> None:
    """A client of the messages API marks another message on each turn; the conversation is the same."""
    mark = {"type": "ephemeral", "ttl": "1h"}
    marked = {"role": "user", "content": [{"type": "text", "text": "task", "cache_control": mark}]}
    plain = {"role": "user", "content": [{"type": "text", "text": "task"}]}
    answer = {"role": "assistant", "content": "on it"}
    headers = {"X-Program-ID": "p"}
    first = json.dumps({"model": "m", "messages": [marked]}).encode()
    second = json.dumps({"model": "m", "messages": [plain, answer]}).encode()
    branches = {identify("/v1/messages", headers, body, IdentityRules()).branch for body in (first, second)}
    assert len(branches) == 1


def test_tools_that_change_keep_the_branch_and_change_the_prefix() -> None:
    """New tools are a new prompt of the same conversation: its old footprint is replaced, not added to."""
    headers, messages = {"X-Program-ID": "p"}, [{"role": "user", "content": "task"}]
    bodies = [json.dumps({"messages": messages, "tools": [{"name": name}]}).encode() for name in ("a", "b")]
    found = [identify("/v1/chat/completions", headers, body, IdentityRules()) for body in bodies]
    assert found[0].branch == found[1].branch
    assert found[0].prefixes != found[1].prefixes
