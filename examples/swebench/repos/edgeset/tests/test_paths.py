import unittest

from edgeset import Graph, NoPath, all_distances, shortest_path


class PathsTest(unittest.TestCase):
    def test_direct(self):
        self.assertEqual(shortest_path(Graph([("a", "b", 4)]), "a", "b"), (4, ["a", "b"]))

    def test_to_itself(self):
        self.assertEqual(shortest_path(Graph([("a", "b", 4)]), "a", "a"), (0, ["a"]))

    def test_no_path(self):
        with self.assertRaises(NoPath):
            shortest_path(Graph([("a", "b")]), "b", "a")

    def test_negative_weight(self):
        with self.assertRaises(ValueError):
            shortest_path(Graph([("a", "b", -1)]), "a", "b")

    def test_all_distances_of_a_chain(self):
        graph = Graph([("a", "b", 1), ("b", "c", 2)])
        self.assertEqual(all_distances(graph, "a"), {"a": 0, "b": 1, "c": 3})
