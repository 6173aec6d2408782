"""Graphs."""

from .components import components, strong_components
from .graph import Graph
from .paths import NoPath, all_distances, shortest_path
from .spanning import DisjointSets, spanning_tree
from .topo import CycleFound, layers, topological_order
from .traverse import breadth_first, depth_first, reachable

__all__ = [
    "CycleFound",
    "DisjointSets",
    "Graph",
    "NoPath",
    "all_distances",
    "breadth_first",
    "components",
    "depth_first",
    "layers",
    "reachable",
    "shortest_path",
    "spanning_tree",
    "strong_components",
    "topological_order",
]
