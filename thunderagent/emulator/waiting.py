"""An ordered queue of waiting requests with removal by rank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from sortedcontainers import SortedDict

__all__ = ["WaitingQueue"]

T = TypeVar("T")


class WaitingQueue(Generic[T]):
    """Items by a unique rank, lowest first; every operation is O(log n)."""

    def __init__(self) -> None:
        self._items: SortedDict = SortedDict()

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        return iter(self._items.values())

    def push(self, item: T, rank: tuple[float, ...]) -> None:
        """Add an item; ranks are unique."""
        self._items[rank] = item

    def first(self) -> T:
        """The item with the lowest rank. Raises IndexError when empty."""
        item: T = self._items.peekitem(0)[1]
        return item

    def pop(self) -> T:
        """Remove and return the item with the lowest rank. Raises KeyError when empty."""
        item: T = self._items.popitem(0)[1]
        return item

    def remove(self, rank: tuple[float, ...]) -> None:
        """Remove the item of this rank. Raises KeyError where there is none."""
        del self._items[rank]
