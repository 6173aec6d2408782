"""Minimum spanning trees."""


class DisjointSets:
    """Union by size with path halving."""

    def __init__(self, items=()):
        self._parent = {item: item for item in items}
        self._size = {item: 1 for item in self._parent}

    def find(self, item):
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def union(self, first, second):
        """Join two sets; False when they were one already."""
        first, second = self.find(first), self.find(second)
        if first == second:
            return False
        if self._size[first] < self._size[second]:
            first, second = second, first
        self._parent[second] = first
        self._size[first] += self._size[second]
        return True

    def size(self, item):
        """Number of items in the set of ``item``."""
        return self._size[self.find(item)]


def spanning_tree(graph):
    """``(total weight, edges)`` of a minimum spanning forest of an undirected graph."""
    if graph.directed:
        raise ValueError("a spanning tree needs an undirected graph")
    sets = DisjointSets(graph)
    total = 0
    chosen = []
    for source, target, weight in sorted(graph.edges(), key=lambda edge: edge[2]):
        if sets.union(source, target):
            total += weight
            chosen.append((source, target, weight))
    return total, chosen
