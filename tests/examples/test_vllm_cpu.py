"""How vLLM's CPU build is started here; the servers themselves belong to ``make test-vllm``."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.vllm_cpu.server import quick_dtype


@pytest.mark.parametrize(
    ("cpuinfo", "dtype"),
    [
        ("processor : 0\nflags\t\t: fpu avx avx2 avx512f avx512_bf16\n", "bfloat16"),
        ("processor : 0\nflags\t\t: fpu avx avx2 fma\n", "float32"),
        ("processor : 0\nFeatures\t: fp asimd bf16\n", "bfloat16"),
    ],
    ids=["avx512", "avx2", "arm"],
)
def test_format_that_the_machine_is_quick_with(tmp_path: Path, cpuinfo: str, dtype: str) -> None:
    """From the flags of the first core."""
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    assert quick_dtype(path) == dtype


def test_no_cpuinfo(tmp_path: Path) -> None:
    """On another system."""
    assert quick_dtype(tmp_path / "none") == "bfloat16"
