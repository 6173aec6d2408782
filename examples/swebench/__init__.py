"""The real mini-swe-agent over a SWE-bench-format data set: a demo on emulated engines, a runner for GPUs."""
