"""Orders that respect the edges."""


class CycleFound(Exception):
    """The graph has a cycle; ``nodes`` are on it, in order."""

    def __init__(self, nodes):
        super().__init__("cycle: " + " -> ".join(map(str, [*nodes, nodes[0]])))
        self.nodes = nodes


def topological_order(graph):
    """Nodes so that each edge points forward; raises CycleFound. Depth first, without recursion."""
    order = []
    done = set()
    for root in graph:
        if root in done:
            continue
        path, open_nodes = [], set()
        stack = [(root, False)]
        while stack:
            node, leaving = stack.pop()
            if leaving:
                path.pop()
                open_nodes.discard(node)
                done.add(node)
                order.append(node)
                continue
            if node in done:
                continue
            if node in open_nodes:
                raise CycleFound(path[path.index(node) :])
            path.append(node)
            open_nodes.add(node)
            stack.append((node, True))
            stack.extend((target, False) for target in reversed(graph.neighbours(node)))
    return order[::-1]


def layers(graph):
    """Lists of nodes: each layer depends only on the ones before it; raises CycleFound."""
    depth = {}
    for node in topological_order(graph):
        depth.setdefault(node, 0)
        for target in graph.neighbours(node):
            depth[target] = max(depth.get(target, 0), depth[node] + 1)
    result = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for node in graph:
        result[depth[node]].append(node)
    return result
