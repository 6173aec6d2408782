"""Measurements, each with its question and command in its docstring; results are in docs/benchmarks.md."""
