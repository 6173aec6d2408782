import unittest

from edgeset import CycleFound, Graph, breadth_first, depth_first, layers, reachable, topological_order


class OrderTest(unittest.TestCase):
    def setUp(self):
        self.graph = Graph([("shirt", "tie"), ("tie", "jacket"), ("trousers", "jacket")])

    def test_edges_point_forward(self):
        order = topological_order(self.graph)
        for source, target, _ in self.graph.edges():
            self.assertLess(order.index(source), order.index(target))

    def test_cycle(self):
        with self.assertRaises(CycleFound) as caught:
            topological_order(Graph([("a", "b"), ("b", "c"), ("c", "b")]))
        self.assertEqual(caught.exception.nodes, ["b", "c"])

    def test_layers(self):
        self.assertEqual(layers(self.graph), [["shirt", "trousers"], ["tie"], ["jacket"]])

    def test_breadth_first(self):
        self.assertEqual(list(breadth_first(self.graph, "shirt")), [("shirt", 0), ("tie", 1), ("jacket", 2)])

    def test_depth_first_order(self):
        graph = Graph([("a", "b"), ("a", "c"), ("b", "d")])
        self.assertEqual(list(depth_first(graph, "a")), ["a", "b", "d", "c"])

    def test_reachable(self):
        self.assertEqual(reachable(self.graph, "tie"), {"tie", "jacket"})
