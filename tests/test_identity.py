"""What is read from a request: program, branch and prefixes, and a body that loses nothing but the id."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from thunderagent.core.ids import BranchId, ProgramId
from thunderagent.errors import BadProgramId, BadRequest, InvalidJson
from thunderagent.identity import MAIN_BRANCH, MAX_MODEL_BYTES, IdentityRules, Submission, check_program_id, identify

CHAT = "/v1/chat/completions"
SHARED = IdentityRules(("user", "prompt_cache_key"))

# First match wins: each row would name the program if none above it did.
PRECEDENCE: tuple[tuple[str, dict[str, Any], dict[str, str]], ...] = (
    ("program_id", {"program_id": "program_id"}, {}),
    ("extra_body", {"extra_body": {"program_id": "extra_body", "top_k": 1}}, {}),
    ("X-Program-ID", {}, {"X-Program-ID": "X-Program-ID"}),
    ("X-Session-ID", {}, {"x-session-id": "X-Session-ID"}),
    ("X-Dynamo-Session-ID", {}, {"X-Dynamo-Session-ID": "X-Dynamo-Session-ID"}),
    ("x-claude-code-session-id", {}, {"x-claude-code-session-id": "x-claude-code-session-id"}),
    ("session-id", {}, {"session-id": "session-id"}),
    ("session_id", {}, {"session_id": "session_id"}),
    ("thread-id", {}, {"thread-id": "thread-id"}),
    ("x-session-affinity", {}, {"x-session-affinity": "x-session-affinity"}),
    ("metadata", {"metadata": {"session_id": "metadata"}}, {}),
    ("user", {"user": "user"}, {}),
    ("prompt_cache_key", {"prompt_cache_key": "prompt_cache_key"}, {}),
)


def _identify(
    body: Mapping[str, Any] | bytes, headers: Mapping[str, str] | None = None, path: str = CHAT, **options: Any
) -> Submission:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    rules = options.pop("rules", IdentityRules())
    return identify(path, CIMultiDict(headers or {}), raw, rules, **options)


def _from(rank: int) -> tuple[dict[str, Any], dict[str, str]]:
    """A body and headers with every source of an id from ``rank`` on."""
    body: dict[str, Any] = {"model": "m"}
    headers: dict[str, str] = {}
    for _, fields, named in PRECEDENCE[rank:]:
        body.update(fields)
        headers.update(named)
    return body, headers


@pytest.mark.parametrize("rank", range(len(PRECEDENCE)), ids=[row[0] for row in PRECEDENCE])
def test_first_source_of_an_id_wins_over_all_later_ones(rank: int) -> None:
    """With this source and all below it present, this one names the program."""
    body, headers = _from(rank)
    assert _identify(body, headers, rules=SHARED).program == PRECEDENCE[rank][0]


def test_shared_fields_name_no_program_unless_asked() -> None:
    """Many runs share ``user`` and ``prompt_cache_key``: without the operator's word the turn is a one-off."""
    submission = _identify({"user": "u", "prompt_cache_key": "k", "metadata": {"session_id": 5}})
    assert (submission.program, submission.branch, submission.prefixes) == (None, MAIN_BRANCH, ())


@pytest.mark.parametrize("body", [{"program_id": None}, {"extra_body": {"program_id": None}}])
def test_null_id_counts_as_none_and_is_removed(body: dict[str, Any]) -> None:
    """SDK wrappers send null for what is not set; the next source is asked, and the backend never sees the field."""
    submission = _identify({**body, "model": "m"}, {"X-Program-ID": "p"})
    assert (submission.program, json.loads(submission.body)) == ("p", {"model": "m"})


def test_empty_headers_and_empty_metadata_are_passed_over() -> None:
    """A header without a value names nothing."""
    submission = _identify({"metadata": {"session_id": ""}}, {"X-Program-ID": "", "thread-id": "t"})
    assert submission.program == "t"


@pytest.mark.parametrize("parent", ["X-Dynamo-Parent-Session-ID", "x-codex-parent-thread-id", "x-parent-session-id"])
def test_child_session_is_a_branch_of_its_parent_s_program(parent: str) -> None:
    """A sub-agent's turns count for the run that started it, as a conversation of their own."""
    submission = _identify({"messages": []}, {"thread-id": "child", parent: "run"})
    assert (submission.program, submission.branch) == ("run", "child")


def test_session_that_is_its_own_parent_is_the_main_one() -> None:
    """Some clients send the parent's id on the parent's own turns."""
    submission = _identify({}, {"X-Dynamo-Session-ID": "run", "X-Dynamo-Parent-Session-ID": "run"})
    assert (submission.program, submission.branch) == ("run", MAIN_BRANCH)


def test_final_flag_of_a_child_does_not_end_the_parent() -> None:
    """A sub-agent that is done leaves its program running; the main session's flag ends it."""
    final = {"X-Dynamo-Session-ID": "s", "X-Dynamo-Session-Final": "TRUE"}
    assert _identify({}, final).is_final is True
    assert _identify({}, {**final, "X-Dynamo-Parent-Session-ID": "run"}).is_final is False
    assert _identify({}, {"X-Program-ID": "p", "X-Session-Final": "false"}).is_final is False
    assert _identify({"program_id": "p"}, {"X-Session-Final": "true"}).is_final is True


def test_agent_header_names_the_branch_whatever_names_the_program() -> None:
    """Claude Code names its sub-agents; that is more certain than a fingerprint."""
    agent = {"x-claude-code-agent-id": "explore", "x-claude-code-session-id": "s"}
    body = {"messages": [{"role": "user", "content": "hi"}]}
    assert _identify(body, agent).branch == "explore"
    assert _identify({**body, "program_id": "p"}, agent).branch == "explore"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "X must have 1 to 256 bytes, got 0"),
        ("a" * 257, "X must have 1 to 256 bytes, got 257"),
        ("\u00e9" * 129, "X must have 1 to 256 bytes, got 258"),
        ("a\nb", "X must not contain control or unprintable characters"),
        ("a\u200b", "X must not contain control or unprintable characters"),
        ("\ud800", "X must not contain control or unprintable characters"),
        (5, "X must be a string, got int"),
        (["a"], "X must be a string, got list"),
        (True, "X must be a string, got bool"),
    ],
)
def test_unusable_id_is_refused_with_the_rule_and_the_place(value: object, message: str) -> None:
    """Ids end up in logs, tables and headers: they are short and printable."""
    with pytest.raises(BadProgramId) as raised:
        check_program_id(value, "X")
    assert (str(raised.value), raised.value.param) == (message, "X")


@pytest.mark.parametrize("value", ["a", "a" * 256, "\u00e9" * 128, "run 1/2:x", "\u8d70"])
def test_usable_id_is_taken_as_it_is(value: str) -> None:
    """Any printable text of 1 to 256 bytes."""
    assert check_program_id(value, "X") == ProgramId(value)


@pytest.mark.parametrize(
    ("body", "headers", "where"),
    [
        (b'{"program_id": 5}', {}, "program_id"),
        (b'{"program_id": ""}', {}, "program_id"),
        (b'{"program_id": "\\ud800"}', {}, "program_id"),
        (b'{"program_id": "\xff"}', {}, "program_id"),
        (b'{"extra_body": {"program_id": {}}}', {}, "extra_body.program_id"),
        (b'{"extra_body": {"program_id": "\\ud800"}}', {}, "extra_body.program_id"),
        (b"{}", {"X-Program-ID": "a" * 257}, "X-Program-ID"),
        (b"{}", {"thread-id": "t", "x-parent-session-id": "a" * 257}, "x-parent-session-id"),
        (b'{"program_id": "p"}', {"x-claude-code-agent-id": "a" * 257}, "x-claude-code-agent-id"),
        (b'{"metadata": {"session_id": "a\\tb"}}', {}, "metadata.session_id"),
    ],
)
def test_unusable_id_is_an_error_wherever_it_stands(body: bytes, headers: dict[str, str], where: str) -> None:
    """A bad id is never a silent one-off turn: its program would go unnoticed and unreleased."""
    with pytest.raises(BadProgramId) as raised:
        _identify(body, headers)
    assert raised.value.param == where


def test_id_behind_one_that_was_found_is_removed_unread() -> None:
    """First match wins, also over a later one that is unusable."""
    submission = _identify({"program_id": "p", "extra_body": {"program_id": 5, "a": 1}}, {"X-Program-ID": "\n"})
    assert (submission.program, json.loads(submission.body)) == ("p", {"extra_body": {"a": 1}})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is empty; a JSON object is expected"),
        (b"[]", "the body is not a JSON object"),
        (b'"x"', "the body is not a JSON object"),
        (b"5", "the body is not a JSON object"),
        (b'{"a": }', "the body is not valid JSON: "),
        (b'{"a": 1} x', "the body is not valid JSON: "),
        (b'{"\xff": 1}', "the body is not valid JSON: "),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "the body is nested too deeply"),
    ],
    ids=["empty", "list", "text", "number", "broken", "trailing", "no utf-8", "deep"],
)
def test_body_that_is_no_object_is_refused(body: bytes, message: str) -> None:
    """Nothing else can be a turn."""
    with pytest.raises(InvalidJson) as raised:
        _identify(body)
    assert str(raised.value).startswith(message)


def test_model_and_stream_are_read_and_strange_values_left_to_the_backend() -> None:
    """The router needs the two; what is wrong with them is the backend's to tell."""
    submission = _identify({"model": "m", "stream": True})
    assert (submission.model, submission.is_stream) == ("m", True)
    strange = _identify({"model": 5, "stream": "yes"})
    assert (strange.model, strange.is_stream) == (None, False)


# The body that is sent on

_texts = st.text() | st.text(st.characters(exclude_categories=()), max_size=3)  # the second: surrogates too
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
_ids = st.text("abc-\u00e9", min_size=1, max_size=20)


def _encoded(body: dict[str, Any], *, ascii_only: bool) -> bytes:
    """As a client writes it; half a surrogate pair can only be written as an escape."""
    try:
        return json.dumps(body, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:
        return json.dumps(body).encode()


@given(
    body=st.dictionaries(st.text(), _json, max_size=6),
    extra=st.none() | st.dictionaries(st.text(), _json, max_size=3),
    outer=st.none() | _ids,
    inner=st.none() | _ids,
    ascii_only=st.booleans(),
)
def test_stripping_the_id_keeps_every_other_key_and_value(
    body: dict[str, Any], extra: dict[str, Any] | None, outer: str | None, inner: str | None, ascii_only: bool
) -> None:
    """For any body: what is sent on is the same object but for the id, in the same order."""
    for fields in (body, extra or {}):
        for name in ("program_id", "extra_body", "metadata"):
            fields.pop(name, None)
    sent = dict(body)
    if extra is not None or inner is not None:
        sent["extra_body"] = dict(extra or {})
    if inner is not None:
        sent["extra_body"]["program_id"] = inner
    if outer is not None:
        sent["program_id"] = outer
    expected = dict(body)
    if extra or (extra is not None and inner is None):
        expected["extra_body"] = extra
    submission = _identify(_encoded(sent, ascii_only=ascii_only))
    assert submission.program == (outer if outer is not None else inner)
    assert json.dumps(json.loads(submission.body)) == json.dumps(expected)


def test_body_without_an_id_is_the_client_s_own_bytes() -> None:
    """Spaces, order, doubled keys and number spellings stay: nothing is encoded anew."""
    raw = b' { "b":1.0e0, "a" : [ ], "b" : 2, "extra_body" : {"x":1} } '
    assert _identify(raw, {"X-Program-ID": "p"}).body is raw


def test_escaped_spelling_of_the_key_is_the_key() -> None:
    """JSON allows any letter to be written as an escape; a backend would read the same name."""
    outer = _identify(b'{"program\\u005fid": "p", "a": 1}')
    nested = _identify(b'{"extra\\u005fbody": {"\\u0070rogram_id": "p"}, "a": 1}')
    assert [(found.program, found.body) for found in (outer, nested)] == [("p", b'{"a":1}')] * 2


def test_doubled_key_counts_as_its_last_value() -> None:
    """As in the backends' own JSON readers; all of its occurrences are removed."""
    submission = _identify(b'{"program_id": "a", "model": "m", "program_id": "b", "model": "n"}')
    assert (submission.program, submission.model) == ("b", "n")
    assert json.loads(submission.body) == {"model": "n"}


def test_values_are_sent_on_in_the_client_s_spelling() -> None:
    """Only the outermost braces are written anew: numbers and escapes inside the values keep their bytes."""
    raw = b'{"program_id": "p", "a": [1.50, "\\u00e9", 1e400, {"x" : "\\ud83d\\ude00"}]}'
    assert _identify(raw).body == b'{"a":[1.50, "\\u00e9", 1e400, {"x" : "\\ud83d\\ude00"}]}'


@pytest.mark.parametrize("extra", [b"5", b"null", b'"program_id"', b'["program_id"]', b"{}"])
def test_extra_body_that_is_no_object_or_empty_is_left_as_it_is(extra: bytes) -> None:
    """The backend tells what is wrong with it."""
    raw = b'{"extra_body": %s}' % extra
    submission = _identify(raw)
    assert (submission.program, submission.body) == (None, raw)


def test_large_body_is_copied_once_at_most() -> None:
    """A 16 MiB conversation: with an id in a header no copy is made, with one in the body a single one."""
    size = 16 * 1024 * 1024
    content = json.dumps([{"role": "user", "content": "x" * (size // 64)}] * 64).encode()
    plain, with_id = b'{"messages": %s}' % content, b'{"messages": %s, "program_id": "p"}' % content
    tracemalloc.start()
    try:
        _identify(plain, {"X-Program-ID": "p"})
        no_copy_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        _identify(with_id)
        one_copy_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert no_copy_bytes < size / 8
    assert one_copy_bytes < 2.2 * size


# Usage in streams


def test_usage_is_asked_for_only_where_a_stream_does_not_ask_itself() -> None:
    """Injection adds the one field, keeps its neighbours, and says that the event is not for the client."""
    asked = _identify({"stream": True, "stream_options": {"a": 1}}, inject_usage=True)
    assert json.loads(asked.body) == {"stream": True, "stream_options": {"a": 1, "include_usage": True}}
    assert asked.drops_usage is True
    for body, path in (
        ({"stream": True, "stream_options": {"include_usage": True}}, CHAT),
        ({"stream": False}, CHAT),
        ({"stream": True, "stream_options": 5}, CHAT),
        ({"stream": True}, "/v1/messages"),
        ({"stream": True}, "/v1/responses"),
    ):
        submission = _identify(body, path=path, inject_usage=True)
        assert (json.loads(submission.body), submission.drops_usage) == (body, False)


def test_branch_type_is_text() -> None:
    """Branches are plain text, so that events can be written down."""
    assert isinstance(_identify({"program_id": "p"}).branch, str)
    assert BranchId("main") == MAIN_BRANCH


@pytest.mark.parametrize("model", ["m" * 256, "\u20ac" * 85 + "m"])
def test_model_of_256_bytes_is_read(model: str) -> None:
    """The longest name that is taken."""
    assert _identify({"model": model}).model == model


@pytest.mark.parametrize("model", ["m" * 257, "\u20ac" * 86, "m" * 1_000_000])
def test_longer_model_is_refused_without_repeating_it(model: str) -> None:
    """The name would be kept with the turn, in the journal, in the log and in the answer."""
    with pytest.raises(BadRequest) as caught:
        _identify({"model": model})
    size_bytes = len(model.encode())
    assert (caught.value.code, caught.value.param) == ("invalid_request", "model")
    assert str(caught.value) == f"model must have at most {MAX_MODEL_BYTES} bytes, got {size_bytes}"


@pytest.mark.parametrize("model", [None, 5, ["m"], {}])
def test_model_that_is_no_text_is_the_backends_matter(model: object) -> None:
    """It answers in its own words."""
    assert _identify({"model": model}).model is None
