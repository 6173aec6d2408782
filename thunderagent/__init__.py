"""A router between LLM agents and vLLM servers that schedules whole agent runs (programs)."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
