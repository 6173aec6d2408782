"""vLLM's CPU build with a tiny random model: the real engine on any Linux machine, for tests and benchmarks."""
