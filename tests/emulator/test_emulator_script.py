"""Scripts, the stand-in tokenizer and the replies that come of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thunderagent.emulator.engine import FinishReason
from thunderagent.emulator.reply import Delta, Reply, filler_reply, scripted_reply
from thunderagent.emulator.script import ScriptError, ScriptTurn, load_script, parse_script
from thunderagent.emulator.tokens import (
    Message,
    ToolCall,
    block_hashes,
    count_tokens,
    filler,
    render_prompt,
    split_tokens,
    token_bytes,
    token_ids,
)

CALL = {"name": "bash", "arguments": {"command": "ls -la"}}
SCRIPT = {
    "conversations": [
        {"match": "first task", "turns": [{"content": "Look.", "tool_calls": [CALL]}, {"content": "Done."}]},
        {"match": "task", "turns": [{"content": "Other.", "completion_tokens": 9}]},
    ]
}


def shown(reply: Reply) -> list[Delta]:
    """All deltas of a reply in order."""
    return [delta for token in reply.deltas for delta in token]


def test_script_answers_by_match_and_turn() -> None:
    """The first conversation that matches, the turn by the number of answers, the last one over and over."""
    script = parse_script(SCRIPT)
    user, answer = Message("user", "my first task"), Message("assistant", "x")
    first = ScriptTurn("Look.", (ToolCall("bash", '{"command": "ls -la"}'),), None)
    assert script.select([user]) == first
    assert script.select([user, answer]) == ScriptTurn("Done.")
    assert script.select([user, answer, Message("tool", "out"), answer, answer]) == ScriptTurn("Done.")
    assert script.select([Message("user", "a task")]) == ScriptTurn("Other.", (), 9)
    assert script.select([Message("system", "task"), Message("user", "hello")]) is None


def with_turn(turn: Any) -> Any:
    """A script with one turn."""
    return {"conversations": [{"match": "m", "turns": [turn]}]}


TURN = "conversations[0].turns[0]"


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        ([], "", "expected an object, got an empty list"),
        ({}, "conversations", "expected a list with at least one entry, got nothing"),
        ({"conversation": []}, "", "unknown key 'conversation'; known are conversations"),
        (
            {"conversations": [{"match": "", "turns": [1]}]},
            "conversations[0].match",
            "that is not empty, got an empty",
        ),
        ({"conversations": [{"match": "m", "turns": []}]}, "conversations[0].turns", "at least one entry"),
        (with_turn("text"), TURN, "expected an object, got text"),
        (with_turn({"content": None}), TURN, "needs content or tool_calls"),
        (with_turn({"content": 3}), f"{TURN}.content", "expected text or null, got a number"),
        (with_turn({"content": "x", "completion_tokens": 0}), f"{TURN}.completion_tokens", "at least 1"),
        (with_turn({"content": "x", "completion_tokens": True}), f"{TURN}.completion_tokens", "at least 1"),
        (with_turn({"tool_calls": {}}), TURN, "needs content or tool_calls"),
        (with_turn({"tool_calls": [{"arguments": {}}]}), f"{TURN}.tool_calls[0].name", "got nothing"),
        (with_turn({"tool_calls": [{"name": "b", "arguments": "x"}]}), f"{TURN}.tool_calls[0].arguments", "got text"),
    ],
)
def test_bad_script_names_the_place(value: Any, path: str, reason: str) -> None:
    """An error says where in the script and why."""
    with pytest.raises(ScriptError) as caught:
        parse_script(value, "demo.json")
    assert (caught.value.source, caught.value.path) == ("demo.json", path)
    assert reason in caught.value.reason
    assert str(caught.value).startswith("script demo.json")


def test_script_file_is_read(tmp_path: Path) -> None:
    """A file gives what its JSON gives."""
    path = tmp_path / "script.json"
    path.write_text(json.dumps(SCRIPT))
    assert load_script(path) == parse_script(SCRIPT)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"{", "not JSON: Expecting property name"), (b"\xff", "not UTF-8 text")],
)
def test_unreadable_script_names_the_file(tmp_path: Path, content: bytes | None, reason: str) -> None:
    """Missing file, bad JSON, bad text."""
    path = tmp_path / "script.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ScriptError, match=reason) as caught:
        load_script(path)
    assert caught.value.source == str(path)


@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), min_size=1, max_size=5))
def test_next_turn_begins_with_this_turn_and_its_reply(turns: list[tuple[str, str]]) -> None:
    """However texts fall on tokens, an echoed reply leaves the bytes before it as they were."""
    messages = [Message("system", "You are an agent.")]
    for asked, answered in turns:
        messages.append(Message("user", asked))
        prompt = render_prompt(messages, [{"type": "function"}])
        turn = ScriptTurn(answered, (ToolCall("bash", '{"a": "é"}'),))
        reply = scripted_reply(turn, 10_000)
        assert len(prompt) % 4 == 0
        assert len(reply.body) == reply.tokens * 4
        messages.append(Message("assistant", reply.content, reply.tool_calls))
        assert render_prompt(messages, [{"type": "function"}]).startswith(prompt + reply.body)


def test_reply_shows_its_text_once() -> None:
    """The deltas of a scripted reply add up to its content and arguments."""
    reply = scripted_reply(ScriptTurn("Look at it.", (ToolCall("bash", '{"command": "ls"}'),)), 1000)
    deltas = shown(reply)
    assert "".join(delta.text for delta in deltas if delta.call is None) == "Look at it."
    assert "".join(delta.text for delta in deltas if delta.call == 0) == '{"command": "ls"}'
    assert [delta.opens for delta in deltas if delta.call == 0] == [True, False, False, False, False, False]
    assert reply.deltas[-1] == ()
    assert reply.finish_reason is FinishReason.STOP


@pytest.mark.parametrize("tokens", [1, 2, 5, 60])
def test_script_sets_the_completion_tokens(tokens: int) -> None:
    """The text is spread over as many tokens as the script asks for."""
    natural = scripted_reply(ScriptTurn("Some words to say here."), 1000)
    reply = scripted_reply(ScriptTurn("Some words to say here.", (), tokens), 1000)
    assert reply.tokens == tokens
    assert shown(reply) == shown(natural)


def test_reply_is_cut_at_the_limit() -> None:
    """A reply longer than allowed ends with reason length and shows what fits."""
    turn = ScriptTurn("Look.", (ToolCall("bash", '{"command": "ls"}'),))
    reply = scripted_reply(turn, 8)
    assert (reply.tokens, reply.content, reply.tool_calls) == (8, "Look.", (ToolCall("bash", '{"comman'),))
    assert reply.finish_reason is FinishReason.LENGTH


def test_filler_is_deterministic_and_has_the_length_asked() -> None:
    """The same prompt gives the same words; another prompt others; each word is a token."""
    assert filler(b"prompt", 20) == filler(b"prompt", 20) != filler(b"another", 20)
    assert count_tokens(filler(b"prompt", 20).encode()) == 20
    assert filler_reply(b"prompt", 20, stops=False).tokens == 20
    stopping = filler_reply(b"prompt", 20, stops=True)
    assert (stopping.tokens, stopping.deltas[-1], stopping.finish_reason) == (20, (), FinishReason.STOP)


@given(st.text())
def test_pieces_add_up_to_the_text(text: str) -> None:
    """Splitting loses nothing and gives a piece per token, also amid multi-byte characters."""
    text = text.encode("utf-8", "replace").decode()
    pieces = split_tokens(text)
    assert "".join(pieces) == text
    assert len(pieces) == count_tokens(text.encode())


def test_block_hashes_stand_for_whole_prefixes() -> None:
    """Equal up to the first difference, different ever after; only full blocks."""
    left = block_hashes(b"a" * 64 + b"b" * 64 + b"c" * 64 + b"tail", 16)
    right = block_hashes(b"a" * 64 + b"x" * 64 + b"c" * 64, 16)
    assert len(left) == len(right) == 3
    assert [one == other for one, other in zip(left, right, strict=True)] == [True, False, False]


def test_token_ids_lead_back_to_the_text() -> None:
    """Ids are the bytes."""
    assert token_bytes(token_ids(b"hello world!")) == b"hello world!"
