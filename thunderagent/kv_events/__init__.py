"""Follows vLLM's KV events: which part of each program's prefix is really in an engine's cache."""
