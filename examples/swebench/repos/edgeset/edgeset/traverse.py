"""Visiting nodes."""

from collections import deque


def breadth_first(graph, start):
    """Yield ``(node, depth)`` from ``start`` outwards; each node once, at its smallest depth."""
    seen = {start}
    queue = deque([(start, 0)])
    while queue:
        node, depth = queue.popleft()
        yield node, depth
        for target in graph.neighbours(node):
            if target not in seen:
                seen.add(target)
                queue.append((target, depth + 1))


def depth_first(graph, start):
    """Yield nodes in preorder, neighbours in their insertion order."""
    seen = set()
    stack = [start]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        stack.extend(reversed(graph.neighbours(node)))


def reachable(graph, start):
    """The set of nodes that can be reached from ``start``, itself included."""
    return set(depth_first(graph, start))
