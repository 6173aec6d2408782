import unittest

from edgeset import DisjointSets, Graph, components, spanning_tree, strong_components


class ComponentsTest(unittest.TestCase):
    def test_two_parts(self):
        graph = Graph([("a", "b"), ("c", "d"), ("d", "e")])
        self.assertEqual(components(graph), [{"c", "d", "e"}, {"a", "b"}])

    def test_strong(self):
        graph = Graph([("a", "b"), ("b", "a"), ("b", "c")])
        self.assertEqual(strong_components(graph), [{"a", "b"}, {"c"}])

    def test_union(self):
        sets = DisjointSets("abc")
        self.assertTrue(sets.union("a", "b"))
        self.assertFalse(sets.union("b", "a"))

    def test_spanning_tree_of_a_triangle(self):
        graph = Graph([("a", "b", 1), ("b", "c", 2), ("a", "c", 9)], directed=False)
        self.assertEqual(spanning_tree(graph), (3, [("a", "b", 1), ("b", "c", 2)]))

    def test_spanning_tree_of_directed(self):
        with self.assertRaises(ValueError):
            spanning_tree(Graph([("a", "b")]))
