"""An ordered queue of waiting requests with removal by rank."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Generic, TypeVar

__all__ = ["WaitingQueue"]

T = TypeVar("T")


class WaitingQueue(Generic[T]):
    """Items by a unique rank, lowest first; every operation is O(log n), amortised."""

    def __init__(self) -> None:
        self._items: dict[tuple[float, ...], T] = {}
        self._ranks: list[tuple[float, ...]] = []
        """Heap of the items' ranks, those of removed ones among them."""

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        return (self._items[rank] for rank in sorted(self._items))

    def push(self, item: T, rank: tuple[float, ...]) -> None:
        """Add an item; ranks are unique."""
        self._items[rank] = item
        heappush(self._ranks, rank)

    def first(self) -> T:
        """The item with the lowest rank. Raises IndexError when empty."""
        items, ranks = self._items, self._ranks
        while ranks[0] not in items:
            heappop(ranks)
        return items[ranks[0]]

    def pop(self) -> T:
        """Remove and return the item with the lowest rank. Raises IndexError when empty."""
        item = self.first()
        del self._items[heappop(self._ranks)]
        return item

    def remove(self, rank: tuple[float, ...]) -> None:
        """Remove the item of this rank. Raises KeyError where there is none."""
        del self._items[rank]
