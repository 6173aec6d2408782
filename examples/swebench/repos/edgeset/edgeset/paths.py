"""Shortest paths over non-negative weights."""

from heapq import heappop, heappush
from itertools import count


class NoPath(Exception):
    """There is no way from ``source`` to ``target``."""

    def __init__(self, source, target):
        super().__init__(f"no path from {source!r} to {target!r}")
        self.source = source
        self.target = target


def _search(graph, source, target=None):
    """(distances, predecessors) of the nodes settled; stops once ``target`` is."""
    distances = {}
    best = {source: 0}
    before = {}
    order = count()
    heap = [(0, next(order), source)]
    while heap:
        distance, _, node = heappop(heap)
        if node in distances:
            continue
        distances[node] = distance
        if target is not None and node == target:
            break
        for neighbour in graph.neighbours(node):
            weight = graph.weight(node, neighbour)
            if weight < 0:
                raise ValueError(f"negative weight on {node!r} -> {neighbour!r}")
            candidate = distance + weight
            if neighbour not in best or candidate < best[neighbour]:
                best[neighbour] = candidate
                before[neighbour] = node
                heappush(heap, (candidate, next(order), neighbour))
    return distances, before


def shortest_path(graph, source, target):
    """``(distance, [source, ..., target])``; raises NoPath, or ValueError for negative weights."""
    distances, before = _search(graph, source, target)
    if target not in distances:
        raise NoPath(source, target)
    path = [target]
    while path[-1] != source:
        path.append(before[path[-1]])
    return distances[target], path[::-1]


def all_distances(graph, source):
    """Distance to each node that can be reached."""
    return _search(graph, source)[0]
