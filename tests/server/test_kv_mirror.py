"""The mirror of an engine's prefix cache: whose blocks are there, and how far a prefix reaches."""

from __future__ import annotations

import random

import msgspec
import pytest
from kv_samples import BLOCK_TOKENS, CLEARED, payload, recorded, removed, stored

from thunderagent.kv_events.messages import BlockRemoved, BlockStored, Unreadable, read_batch
from thunderagent.kv_events.mirror import CacheMirror, SessionBlocks


def mirror_of(*events: dict[str, object]) -> CacheMirror:
    mirror = CacheMirror()
    mirror.apply(read_batch(payload(*events)))
    return mirror


def blocks(mirror: CacheMirror, session: str) -> tuple[int | None, int] | None:
    """Prefix and all blocks of a session, in blocks."""
    found = mirror.blocks_of(session)
    if found is None:
        return None
    prefix = found.prefix_tokens
    return None if prefix is None else prefix // BLOCK_TOKENS, found.held_tokens // BLOCK_TOKENS


# Messages


def test_recorded_messages_are_read() -> None:
    """Real frames: sessions, parents, evictions; the token ids are passed over."""
    batches = [read_batch(body) for _, body in recorded()]
    events = [event for batch in batches for event in batch]
    assert {event.session_id for event in events if isinstance(event, BlockStored)} == {
        None,
        "sess-A",
        "sess-A2",
        "sess-B",
        "sess-C",
    }
    assert sum(len(event.block_hashes) for event in events if isinstance(event, BlockRemoved)) > 100
    assert all(event.block_size == 32 for event in events if isinstance(event, BlockStored))


def test_other_media_are_left_out() -> None:
    """A copy in host memory is no cached prefix."""
    events = read_batch(payload(stored(1), stored(2, medium="CPU"), removed(1, medium="CPU")))
    assert [event.block_hashes for event in events if isinstance(event, BlockStored)] == [[1]]
    assert len(events) == 1


def test_group_of_full_attention_is_the_prefix() -> None:
    """A hybrid model's first group may be that of a sliding window, of which only the end stays."""
    window = {"group_idx": 0, "kv_cache_spec_kind": "sliding_window"}
    full = {"group_idx": 1, "kv_cache_spec_kind": "full_attention"}
    mirror = mirror_of(
        stored(1, 2, session="p", **window),
        stored(1, 2, session="p", **full),
        removed(1, group_idx=0),
        stored(**window),
    )
    assert blocks(mirror, "p") == (2, 2)
    mirror.apply(read_batch(payload(removed(2, group_idx=1))))
    assert blocks(mirror, "p") == (1, 1)


def test_event_without_blocks_changes_nothing() -> None:
    """vLLM sends them where all new blocks were masked; what they stand on may be unknown."""
    mirror = mirror_of(stored(1, session="p"), stored(parent=424242, session="p"))
    assert blocks(mirror, "p") == (1, 1)


def test_hashes_may_be_bytes() -> None:
    """vLLM writes them whole where it is told to."""
    body = msgspec.msgpack.encode([1.0, [{**stored(1), "block_hashes": [b"\x01" * 32]}], 0])
    (event,) = read_batch(body)
    assert isinstance(event, BlockStored)
    assert event.block_hashes == [b"\x01" * 32]


@pytest.mark.parametrize("body", [b"", b"\xff", msgspec.msgpack.encode([1.0, [["BlockStored", [1], None]], 0])])
def test_other_forms_are_unreadable(body: bytes) -> None:
    """Nothing, rubbish, and the arrays of older engines."""
    with pytest.raises(Unreadable):
        read_batch(body)


# The mirror


def test_recording_of_an_engine() -> None:
    """Sessions A to C fill their blocks; what the fillers evict is theirs no longer."""
    mirror, seen = CacheMirror(), {}
    for sequence, body in recorded():
        mirror.apply(read_batch(body))
        seen[sequence] = {name: blocks(mirror, name) for name in ("sess-A", "sess-A2", "sess-B", "sess-C")}
    assert seen[351]["sess-A"] == (3, 3)
    assert seen[353]["sess-A2"] == (3, 3)  # stored two of A's blocks again, behind A's first one
    assert seen[368] == {"sess-A": (3, 3), "sess-A2": (3, 3), "sess-B": (3, 3), "sess-C": (3, 3)}
    assert seen[369]["sess-A"] == (1, 1)  # both copies of two blocks evicted
    assert seen[370] == {"sess-A": None, "sess-A2": None, "sess-B": None, "sess-C": None}


def test_eviction_from_the_end_shortens_the_prefix() -> None:
    """As LRU evicts: the last block first."""
    mirror = mirror_of(stored(1, 2, 3, session="p"), removed(3))
    assert blocks(mirror, "p") == (2, 2)
    mirror.apply(read_batch(payload(removed(2), removed(1))))
    assert blocks(mirror, "p") is None
    assert mirror.take_changes(10) == [SessionBlocks("p", 0, 0)]
    assert mirror.cached_tokens == 0


def test_hole_ends_the_prefix() -> None:
    """What stands on a missing block is cached, but not found, whatever goes after it."""
    mirror = mirror_of(stored(1, 2, 3, 4, session="p"), removed(2))
    assert blocks(mirror, "p") == (1, 3)
    for gone, left in ((4, 2), (3, 1)):
        mirror.apply(read_batch(payload(removed(gone))))
        assert blocks(mirror, "p") == (1, left)


def test_hole_that_was_filled_may_come_again() -> None:
    """It is a hole for all that stand on it, whoever filled it; the prefix is told anew when its session stores."""
    mirror = mirror_of(stored(1, 2, 3, session="p"), removed(2), stored(2, parent=1, session="q"))
    assert (blocks(mirror, "p"), blocks(mirror, "q")) == ((1, 3), (2, 2))
    mirror.apply(read_batch(payload(stored(4, parent=3, session="p"))))
    assert blocks(mirror, "p") == (4, 4)
    mirror.apply(read_batch(payload(removed(2))))
    assert (blocks(mirror, "p"), blocks(mirror, "q")) == ((1, 3), (1, 1))
    mirror.apply(read_batch(payload(removed(4), removed(3), removed(1))))
    assert (blocks(mirror, "p"), mirror._children, mirror._holes) == (None, {}, {})


def test_holes_that_another_session_filled_are_holes_again_for_all_that_stand_on_them() -> None:
    """Two in a row: the first one was nobody's once the second had gone too."""
    mirror = mirror_of(
        stored(1, 2, 3, session="p"),
        removed(1),
        removed(2),
        stored(1, 2, session="q"),
        stored(4, parent=3, session="p"),
    )
    assert (blocks(mirror, "p"), blocks(mirror, "q")) == ((4, 4), (2, 2))
    mirror.take_changes(10)
    mirror.apply(read_batch(payload(removed(1))))
    assert (blocks(mirror, "p"), blocks(mirror, "q")) == ((0, 3), (0, 1))
    assert {change.session for change in mirror.take_changes(10)} == {"p", "q"}


def test_hole_in_another_conversation_leaves_the_prefix() -> None:
    """The tip's own blocks are all there."""
    mirror = mirror_of(stored(11, 12, session="p"), stored(1, 2, 3, session="p"), removed(11))
    assert blocks(mirror, "p") == (3, 4)


def test_sessions_that_are_over_leave_a_shared_beginning() -> None:
    """Ten thousand programs stand on one system prompt, one after the other: no more are kept than those alive."""
    alive: set[str] = set()
    mirror = CacheMirror(lambda session: session in alive)
    alive.add("first")
    mirror.apply(read_batch(payload(stored(*range(1, 9), session="first"))))
    for number in range(10_000):
        alive = {"first", f"p{number}"}
        own = 100 + number
        mirror.apply(read_batch(payload(stored(own, parent=8, session=f"p{number}"), removed(own))))
    assert len(mirror._sessions) <= 40
    assert blocks(mirror, "first") == (8, 8)


def test_session_that_nobody_asks_for_is_not_kept() -> None:
    """Clients that go past the router."""
    mirror = CacheMirror(lambda session: False)
    mirror.apply(read_batch(payload(stored(1, 2, session="stranger"))))
    assert (blocks(mirror, "stranger"), mirror.cached_tokens) == (None, 2 * BLOCK_TOKENS)


def test_block_stored_twice_needs_two_removals() -> None:
    """The same content computed side by side lies in two blocks."""
    mirror = mirror_of(stored(1, 2, session="p"), stored(2, parent=1, session="q"), removed(2))
    assert blocks(mirror, "p") == (2, 2)
    assert blocks(mirror, "q") == (2, 2)
    assert mirror.cached_tokens == 2 * BLOCK_TOKENS
    mirror.apply(read_batch(payload(removed(2), removed(1))))
    assert blocks(mirror, "p") is None
    assert blocks(mirror, "q") is None


def test_hit_that_is_reported_is_no_copy() -> None:
    """A client asked for it: the blocks are its session's too, and gone with their only copy."""
    mirror = mirror_of(stored(1, 2, session="p"), stored(1, 2, session="q"), stored(3, parent=2, session="q"))
    assert (blocks(mirror, "p"), blocks(mirror, "q")) == ((2, 2), (3, 3))
    mirror.apply(read_batch(payload(removed(3), removed(2))))
    assert (blocks(mirror, "p"), blocks(mirror, "q")) == ((1, 1), (1, 1))
    mirror.apply(read_batch(payload(removed(1))))
    assert (blocks(mirror, "p"), blocks(mirror, "q"), mirror.cached_tokens) == (None, None, 0)


def test_blocks_of_a_hybrid_model_that_are_stored_again_are_copies() -> None:
    """The window's blocks were evicted, so that the hit ended before those of full attention, which are there."""
    full = {"group_idx": 0, "kv_cache_spec_kind": "full_attention"}
    window = {"group_idx": 1, "kv_cache_spec_kind": "sliding_window"}
    mirror = mirror_of(
        stored(1, 2, session="p", **full),
        stored(1, 2, session="p", **window),
        removed(1, 2, group_idx=1),
        stored(1, 2, session="q", **full),
        stored(1, 2, session="q", **window),
        removed(2, group_idx=0),
    )
    assert (blocks(mirror, "p"), blocks(mirror, "q")) == ((2, 2), (2, 2))
    mirror.apply(read_batch(payload(removed(2, group_idx=0))))
    assert (blocks(mirror, "p"), blocks(mirror, "q")) == ((1, 1), (1, 1))


def test_shared_beginning_belongs_to_all_that_stand_on_it() -> None:
    """A hit is not reported: what the new block stands on tells it."""
    mirror = mirror_of(stored(1, 2, session="p"), stored(3, parent=2, session="q"))
    assert blocks(mirror, "q") == (3, 3)
    assert blocks(mirror, "p") == (2, 2)
    mirror.apply(read_batch(payload(removed(3), removed(2))))
    assert blocks(mirror, "q") == (1, 1)
    assert blocks(mirror, "p") == (1, 1)


def test_answer_that_comes_back_changed_is_a_dead_end() -> None:
    """The next prompt renders the answer otherwise: its blocks stay cached, but are no part of the prefix."""
    mirror = mirror_of(stored(1, 2, session="p"), stored(10, parent=2, session="p"), stored(3, parent=2, session="p"))
    assert blocks(mirror, "p") == (3, 4)
    mirror.apply(read_batch(payload(removed(10))))
    assert blocks(mirror, "p") == (3, 3)


def test_beginning_stored_before_is_unknown() -> None:
    """Joined late: how far the prefix reaches cannot be said."""
    mirror = mirror_of(stored(6, parent=5, session="p"))
    assert blocks(mirror, "p") == (None, 1)
    mirror.apply(read_batch(payload(removed(5))))
    assert blocks(mirror, "p") == (None, 1)


def test_clear_and_forget() -> None:
    """A reset cache is known to be empty; missed messages leave nothing known."""
    mirror = mirror_of(stored(1, session="p"), CLEARED)
    assert mirror.take_changes(10) == [SessionBlocks("p", 0, 0)]
    mirror = mirror_of(stored(1, session="p"))
    mirror.forget()
    assert mirror.take_changes(10) == [SessionBlocks("p", None, 0)]
    assert mirror.blocks_of("p") is None


@pytest.mark.parametrize("gone", [removed(1), CLEARED])
def test_nothing_cached_is_unknown_too_when_all_is_forgotten(gone: dict[str, object]) -> None:
    """What is told last of every session is that it is not known, also where it was told that it has nothing."""
    mirror = mirror_of(stored(1, session="p"), gone)
    assert mirror.take_changes(10) == [SessionBlocks("p", 0, 0)]
    mirror.forget()
    assert mirror.take_changes(10) == [SessionBlocks("p", None, 0)]
    mirror.forget()
    assert mirror.take_changes(10) == []


def test_sessions_that_are_over_are_not_remembered_as_empty() -> None:
    """Ten thousand programs whose blocks were evicted while they lived."""
    alive: set[str] = set()
    mirror = CacheMirror(lambda session: session in alive)
    for number in range(10_000):
        alive = {f"p{number}"}
        mirror.apply(read_batch(payload(stored(number, session=f"p{number}"), removed(number))))
    assert len(mirror._emptied) <= 256


def test_changes_are_taken_in_parts() -> None:
    """Each session once, none lost."""
    mirror = mirror_of(*(stored(number, session=f"p{number}") for number in range(1, 8)))
    first, second = mirror.take_changes(5), mirror.take_changes(5)
    assert (len(first), len(second)) == (5, 2)
    assert {change.session for change in first + second} == {f"p{number}" for number in range(1, 8)}
    assert mirror.take_changes(5) == []


@pytest.mark.parametrize("seed", range(20))
def test_mirror_equals_a_recount(seed: int) -> None:
    """Random conversations over a cache that evicts blocks without children: every figure against plain sets."""
    draw, mirror = random.Random(seed), CacheMirror()
    copies: dict[int, int] = {}
    parent_of: dict[int, int | None] = {}
    held: dict[str, set[int]] = {name: set() for name in "pqr"}
    chains: dict[str, list[int]] = {name: [] for name in "pqr"}
    fresh = iter(range(1, 10_000))
    for _ in range(400):
        name = draw.choice("pqr")
        if draw.random() < 0.6:
            known = [block for block in copies if copies[block]]
            base: int | None = draw.choice(known) if known and draw.random() < 0.7 else None
            if chains[name] and copies.get(chains[name][-1]) and draw.random() < 0.6:
                base = chains[name][-1]
            new = [next(fresh) for _ in range(draw.randint(1, 3))]
            inner = [block for block in known if parent_of[block] is not None]
            if inner and draw.random() < 0.1:
                again = draw.choice(inner)
                base, new = parent_of[again], [again]
            mirror.apply(read_batch(payload(stored(*new, parent=base, session=name))))
            for before, block in zip([base, *new], new, strict=False):
                copies[block] = copies.get(block, 0) + 1
                parent_of.setdefault(block, before)
            chain: list[int] = []
            at: int | None = new[-1]
            while at is not None:
                chain.insert(0, at)
                at = parent_of[at]
            chains[name] = chain
            held[name].update(block for block in chain if copies[block])
        else:
            leaves = [
                block
                for block, count in copies.items()
                if count and not any(copies[other] for other, before in parent_of.items() if before == block)
            ]
            if leaves:
                gone = draw.choice(leaves)
                mirror.apply(read_batch(payload(removed(gone))))
                copies[gone] -= 1
                if not copies[gone]:
                    for blocks_held in held.values():
                        blocks_held.discard(gone)
        for session, expected in held.items():
            reach = 0
            for block in chains[session]:
                if not copies[block]:
                    break
                reach += 1
            assert blocks(mirror, session) == ((reach, len(expected)) if expected else None)
        assert mirror.cached_tokens == BLOCK_TOKENS * sum(1 for count in copies.values() if count)
