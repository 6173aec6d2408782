"""A preset in a file, as ``thunderagent calibrate`` writes it: JSON, under the names of ``Preset``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import msgspec

from thunderagent.emulator.timing import PRESETS, Preset, TimingModel

__all__ = ["PresetError", "find_preset", "read_preset", "write_preset"]


class PresetError(Exception):
    """No such preset, or a file that holds none: which, and why."""


def find_preset(text: str) -> Preset:
    """A preset by its name, or by the path of its file (what has a slash in it or ends in .json).

    Raises:
        PresetError
    """
    if text in PRESETS:
        return PRESETS[text]
    if "/" in text or text.endswith(".json"):
        return read_preset(Path(text))
    raise PresetError(f"unknown preset {text!r}; there are {', '.join(PRESETS)}, or give a file (PATH.json)")


def read_preset(path: Path) -> Preset:
    """Raises PresetError."""
    try:
        told = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise PresetError(f"{path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PresetError(f"{path}: {error}") from None
    if not isinstance(told, dict) or not isinstance(told.get("timing"), dict):
        raise PresetError(f"{path}: a preset is an object with timing, an object, among its fields")
    timing = TimingModel(**_fields(path, told.pop("timing"), TimingModel, "timing."))
    preset = Preset(timing=timing, **_fields(path, told, Preset, ""))
    if timing.step_seconds <= 0 or timing.prefill_token_seconds <= 0:
        raise PresetError(f"{path}: timing.step_seconds and timing.prefill_token_seconds must be above 0")
    if preset.max_num_batched_tokens < preset.max_num_seqs:
        raise PresetError(f"{path}: max_num_batched_tokens must be at least max_num_seqs, as vLLM has it")
    return preset


def _fields(path: Path, told: dict[str, Any], kind: type[Any], where: str) -> dict[str, Any]:
    kinds = {each.name: str(each.type) for each in attrs.fields(kind) if each.name != "timing"}
    for name in (*kinds, *told):
        if name not in told or name not in kinds:
            raise PresetError(f"{path}: {where}{name} {'is missing' if name in kinds else 'is no field of a preset'}")
        value = told[name]
        if kinds[name] == "str":
            is_good = isinstance(value, str) and value != ""
        elif kinds[name] == "int":
            is_good = type(value) is int and value > 0
        else:
            is_good = type(value) in (int, float) and value >= 0
        if not is_good:
            raise PresetError(f"{path}: {where}{name} cannot be {value!r}")
    return told


def write_preset(path: Path, preset: Preset) -> None:
    """Raises PresetError."""
    text = msgspec.json.format(msgspec.json.encode(attrs.asdict(preset)), indent=2)
    try:
        path.write_bytes(text + b"\n")
    except OSError as error:
        raise PresetError(f"{path}: {error.strerror}") from None
