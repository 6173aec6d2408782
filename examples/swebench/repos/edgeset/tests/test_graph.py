import unittest

from edgeset import Graph


class GraphTest(unittest.TestCase):
    def test_edges_of_a_directed_graph(self):
        graph = Graph([("a", "b"), ("b", "c", 5)])
        self.assertEqual(list(graph.edges()), [("a", "b", 1), ("b", "c", 5)])

    def test_undirected_neighbours(self):
        graph = Graph([("a", "b")], directed=False)
        self.assertEqual(graph.neighbours("b"), ["a"])

    def test_adding_again_replaces_the_weight(self):
        graph = Graph([("a", "b", 1), ("a", "b", 9)])
        self.assertEqual(graph.weight("a", "b"), 9)

    def test_remove_edge(self):
        graph = Graph([("a", "b"), ("b", "a")], directed=False)
        graph.remove_edge("a", "b")
        self.assertEqual(graph.neighbours("b"), [])

    def test_remove_missing_edge(self):
        with self.assertRaises(KeyError):
            Graph([("a", "b")]).remove_edge("b", "a")

    def test_reversed(self):
        self.assertEqual(list(Graph([("a", "b", 2)]).reversed().edges()), [("b", "a", 2)])

    def test_subgraph(self):
        graph = Graph([("a", "b"), ("b", "c"), ("c", "a")])
        self.assertEqual(list(graph.subgraph("ab").edges()), [("a", "b", 1)])

    def test_copy_has_own_nodes(self):
        graph = Graph([("a", "b")])
        clone = graph.copy()
        clone.add_node("z")
        self.assertNotIn("z", graph)
