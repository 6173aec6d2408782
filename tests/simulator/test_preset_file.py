"""Presets in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from thunderagent.emulator.preset_file import PresetError, find_preset, read_preset, write_preset
from thunderagent.emulator.timing import CPU_TINY, PRESETS


def test_written_and_read(tmp_path: Path) -> None:
    """The same one comes back."""
    path = tmp_path / "preset.json"
    write_preset(path, CPU_TINY)
    assert read_preset(path) == find_preset(str(path)) == CPU_TINY
    assert find_preset("cpu-tiny") is PRESETS["cpu-tiny"]


def changed(path: Path, **changes: Any) -> Path:
    write_preset(path, CPU_TINY)
    told = json.loads(path.read_text())
    for name, value in changes.items():
        where = told["timing"] if name.endswith("seconds") else told
        if value is None:
            del where[name]
        else:
            where[name] = value
    path.write_text(json.dumps(told))
    return path


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kv_tokens": -5}, "kv_tokens cannot be -5"),
        ({"kv_tokens": 1.5}, "kv_tokens cannot be 1.5"),
        ({"kv_tokens": True}, "kv_tokens cannot be True"),
        ({"title": None}, "title is missing"),
        ({"color": "red"}, "color is no field"),
        ({"step_seconds": "fast"}, "timing.step_seconds cannot be 'fast'"),
        ({"step_seconds": 0.0}, "must be above 0"),
        ({"timing": 5}, "timing, an object"),
        ({"max_num_batched_tokens": 7, "max_num_seqs": 8}, "must be at least max_num_seqs"),
    ],
)
def test_file_that_is_no_preset(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    """File, field and reason."""
    path = changed(tmp_path / "preset.json", **changes)
    with pytest.raises(PresetError) as raised:
        read_preset(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert reason in str(raised.value)


def test_file_that_is_no_json(tmp_path: Path) -> None:
    """Or no text, or not there."""
    path, binary = tmp_path / "preset.json", tmp_path / "binary.json"
    path.write_text("{")
    binary.write_bytes(b'{"\xff\xfe": 1}')
    for where in (path, binary, tmp_path / "none.json"):
        with pytest.raises(PresetError, match=where.name):
            read_preset(where)
    with pytest.raises(PresetError, match="none"):
        write_preset(tmp_path / "none" / "preset.json", CPU_TINY)
