"""An emulated vLLM engine: the KV cache, batching and HTTP face of the real one, with simulated timings."""

from __future__ import annotations
