"""The per-instance copy of a run configuration that carries the program id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minisweagent_patch.programs import is_active, say_once

_SECTIONS = ("model", "model_kwargs", "extra_body")


def with_program_id(config: Mapping[str, Any], program_id: str, timeout_seconds: float) -> dict[str, Any]:
    """A copy of ``config`` with the id at ``model.model_kwargs.extra_body.program_id``.

    The caller's mappings stay as they are, and so does every other key; missing and None sections
    become mappings. Top-level sections are copied one level deep, since mini-swe-agent up to 2.0
    writes into ``environment``, which worker threads share.

    Args:
        config: a run configuration (``model``, ``environment``, ``agent``).
        program_id: replaces one that is configured already, which is logged once.
        timeout_seconds: set as ``model_kwargs.timeout`` where a litellm model has none; 0: not set.

    Raises:
        TypeError: a section is not a mapping; the message names the key path.
    """
    model, model_kwargs, extra_body = _sections(config)
    if extra_body.get("program_id") not in (None, program_id):
        say_once(
            "fixed-id",
            "config['model']['model_kwargs']['extra_body']['program_id'] is set to a fixed id; every instance "
            "gets an id of its own instead",
        )
    extra_body["program_id"] = program_id
    if timeout_seconds > 0 and uses_litellm(model) and not _has_timeout(model_kwargs):
        model_kwargs["timeout"] = timeout_seconds
    copied = {key: dict(value) if type(value) is dict else value for key, value in config.items()}
    copied["model"] = {**model, "model_kwargs": {**model_kwargs, "extra_body": extra_body}}
    return copied


def carries_active_id(config: Mapping[str, Any]) -> bool:
    """Whether the configuration holds the id of a program of this process that is not released yet.

    Then an outer layer of this package announced the run already. Raises as ``with_program_id``.
    """
    return is_active(_sections(config)[2].get("program_id"))


def uses_litellm(model: Mapping[str, Any]) -> bool:
    """Whether a ``model`` section selects one of the classes that call litellm (the default does)."""
    name = str(model.get("model_class") or "litellm")
    return "litellm" in name or name.startswith("minisweagent_patch.")


def _sections(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Shallow copies of ``model``, ``model.model_kwargs`` and ``model.model_kwargs.extra_body``."""
    if not isinstance(config, Mapping):
        raise TypeError(f"config must be a mapping, not {type(config).__name__}")
    copies: list[dict[str, Any]] = []
    parent: Mapping[str, Any] = config
    path = "config"
    for key in _SECTIONS:
        path += f"['{key}']"
        value = parent.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise TypeError(
                f"{path} must be a mapping, not {type(value).__name__}; the program id goes to "
                "config['model']['model_kwargs']['extra_body']['program_id']"
            )
        parent = dict(value or {})
        copies.append(parent)
    model, model_kwargs, extra_body = copies
    return model, model_kwargs, extra_body


def _has_timeout(model_kwargs: Mapping[str, Any]) -> bool:
    return any(model_kwargs.get(key) is not None for key in ("timeout", "request_timeout"))
