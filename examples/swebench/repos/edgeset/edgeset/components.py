"""Connected parts."""

from .traverse import depth_first, reachable


def components(graph):
    """Sets of nodes connected when directions are ignored, largest first."""
    both = graph.copy()
    if graph.directed:
        for source, target, weight in graph.edges():
            both.add_edge(target, source, weight)
    remaining = dict.fromkeys(graph)
    parts = []
    while remaining:
        part = reachable(both, next(iter(remaining)))
        parts.append(part)
        for node in part:
            del remaining[node]
    return sorted(parts, key=len, reverse=True)


def _finishing_order(graph):
    order, seen = [], set()
    for root in graph:
        stack = [(root, False)]
        while stack:
            node, leaving = stack.pop()
            if leaving:
                order.append(node)
            elif node not in seen:
                seen.add(node)
                stack.append((node, True))
                stack.extend((target, False) for target in graph.neighbours(node))
    return order


def strong_components(graph):
    """Sets of nodes that reach each other, in the order in which they can be processed."""
    turned = graph.reversed()
    taken = set()
    parts = []
    for root in reversed(_finishing_order(graph)):
        if root in taken:
            continue
        part = {node for node in depth_first(turned.subgraph(set(turned) - taken), root)}
        taken |= part
        parts.append(part)
    return parts
