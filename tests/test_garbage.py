"""The collector of cyclic garbage: what a pass has left is not looked at again, and no garbage stays for ever."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

from thunderagent.garbage import rare_collections, small_collections


class Node:
    """May be part of a cycle."""

    def __init__(self) -> None:
        self.other: object = None


def cycle() -> Node:
    """A node that only the collector frees once nobody refers to it."""
    node = Node()
    node.other = node
    return node


def frozen_by(make: Callable[[], object]) -> tuple[object, int]:
    """What was made, and how many more objects are frozen after a full pass."""
    before = gc.get_freeze_count()
    made = make()
    gc.collect()
    return made, gc.get_freeze_count() - before


def test_survivors_of_a_pass_are_frozen_and_young_garbage_is_freed() -> None:
    """A full pass frees what is garbage and takes the rest out of the next one's way; without references it goes."""
    with small_collections(1 << 40):
        garbage = weakref.ref(cycle())
        made, count = frozen_by(lambda: [Node() for _ in range(1000)])
        assert garbage() is None
        assert count >= 1000
        frozen = gc.get_freeze_count()
        del made
        assert frozen - gc.get_freeze_count() >= 1000


def test_frozen_garbage_is_found_when_memory_has_grown() -> None:
    """A cycle that was frozen while it was used is freed once the process has more than the limit resident."""
    resident_bytes = 100
    with small_collections(1000, lambda: resident_bytes):
        kept = cycle()
        gc.collect()
        seen = weakref.ref(kept)
        del kept
        gc.collect()
        assert seen() is not None
        resident_bytes = 1001
        gc.collect()  # finds that memory has grown
        gc.collect()  # looks at everything
        assert seen() is None
        assert gc.get_freeze_count() > 0


def test_limit_is_twice_what_a_whole_pass_has_left() -> None:
    """A process that is larger for good is not looked at as a whole again and again."""
    resident_bytes = 1001
    with small_collections(1000, lambda: resident_bytes):
        kept = cycle()
        gc.collect()
        seen = weakref.ref(kept)
        del kept
        resident_bytes = 2002
        gc.collect()
        gc.collect()
        assert seen() is not None
        resident_bytes = 2003
        gc.collect()
        gc.collect()
        assert seen() is None
        resident_bytes = 4006
        gc.collect()
        assert gc.get_freeze_count() > 0


def test_afterwards_the_collector_is_as_before() -> None:
    """Whoever serves in a process of their own gets their collector back."""
    before = (gc.get_threshold(), list(gc.callbacks), gc.get_freeze_count())
    try:
        with small_collections():
            assert gc.get_freeze_count() > 0
            raise KeyError
    except KeyError:
        pass
    assert (gc.get_threshold(), list(gc.callbacks), gc.get_freeze_count()) == before


def test_rare_collections_last_as_long_as_the_block_even_if_it_fails() -> None:
    """Passes come seldom within it, and as before behind it."""
    before = gc.get_threshold()
    within = before
    try:
        with rare_collections():
            within = gc.get_threshold()
            raise KeyError
    except KeyError:
        pass
    assert within[0] > before[0]
    assert gc.get_threshold() == before
