"""Runs the real scheduler and policies against emulated engines on a virtual clock."""
