"""The graph: nodes are hashable, edges carry a weight."""


class Graph:
    """Adjacency in insertion order.

    ``edges`` are ``(source, target)`` or ``(source, target, weight)``; the weight is 1 by default.
    An undirected graph stores each edge in both directions.
    """

    def __init__(self, edges=(), directed=True):
        self.directed = directed
        self._targets = {}
        for edge in edges:
            self.add_edge(*edge)

    def __contains__(self, node):
        return node in self._targets

    def __iter__(self):
        return iter(self._targets)

    def __len__(self):
        return len(self._targets)

    def add_node(self, node):
        self._targets.setdefault(node, {})

    def add_edge(self, source, target, weight=1):
        """Add or replace an edge; the nodes are added as needed."""
        self.add_node(source)
        self.add_node(target)
        self._targets[source][target] = weight
        if not self.directed:
            self._targets[target][source] = weight

    def remove_edge(self, source, target):
        """Remove an edge; KeyError when it is not there."""
        del self._targets[source][target]
        if not self.directed and source != target:
            del self._targets[target][source]

    def remove_node(self, node):
        """Remove a node and every edge that touches it; KeyError when it is not there."""
        del self._targets[node]
        for targets in self._targets.values():
            targets.pop(node, None)

    def neighbours(self, node):
        """Targets of the edges that leave ``node``, in insertion order."""
        return list(self._targets[node])

    def weight(self, source, target):
        return self._targets[source][target]

    def edges(self):
        """Each edge once, as ``(source, target, weight)``."""
        seen = set()
        for source, targets in self._targets.items():
            for target, weight in targets.items():
                if not self.directed:
                    if (target, source) in seen:
                        continue
                    seen.add((source, target))
                yield source, target, weight

    def reversed(self):
        """A new graph with each edge turned round; an undirected one is copied."""
        turned = Graph(directed=self.directed)
        for node in self:
            turned.add_node(node)
        for source, target, weight in self.edges():
            turned.add_edge(target, source, weight)
        return turned

    def copy(self):
        """An independent copy."""
        clone = Graph(directed=self.directed)
        clone._targets = {node: dict(targets) for node, targets in self._targets.items()}
        return clone

    def subgraph(self, nodes):
        """The nodes given and the edges between them."""
        keep = set(nodes)
        part = Graph(directed=self.directed)
        for node in self:
            if node in keep:
                part.add_node(node)
        for source, target, weight in self.edges():
            if source in keep and target in keep:
                part.add_edge(source, target, weight)
        return part
