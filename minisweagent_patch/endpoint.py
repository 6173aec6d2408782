"""From the API base that a run uses to the router's release endpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

RELEASE_PATH = "/programs/release"

# The variables litellm reads where the configuration names no API base, by provider prefix, in its order.
_OPENAI_VARIABLES = ("OPENAI_BASE_URL", "OPENAI_API_BASE")
_BASE_VARIABLES: dict[str, tuple[str, ...]] = {
    "hosted_vllm": ("HOSTED_VLLM_API_BASE",),
    "openai": _OPENAI_VARIABLES,
    "text-completion-openai": _OPENAI_VARIABLES,
}
_ANY_VARIABLES = ("HOSTED_VLLM_API_BASE", "OPENAI_API_BASE", "OPENAI_BASE_URL")

_API_SUFFIXES = ("/chat/completions", "/completions", "/responses", "/v1")


def release_url(base: str) -> str | None:
    """The release endpoint for an API base.

    ``http://h:8300``, ``http://h:8300/v1/`` and ``http://h:8300/v1/chat/completions`` give
    ``http://h:8300/programs/release``; a path prefix is kept (``http://h/r/v1`` gives
    ``http://h/r/programs/release``); a release URL is returned as it is. None: not an http(s) URL.
    """
    try:
        parts = urlsplit(base.strip())
        host = parts.hostname
        _ = parts.port  # raises ValueError where it is not a number
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not host:
        return None
    path = parts.path.rstrip("/")
    if not path.endswith(RELEASE_PATH):
        for suffix in _API_SUFFIXES:
            path = path.removesuffix(suffix).rstrip("/")
        path += RELEASE_PATH
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def api_base_for_model(model: Mapping[str, Any]) -> str | None:
    """The API base that litellm uses for a ``model`` section, or None where it is not known.

    The configuration comes first (``api_base``, then ``base_url``), then the variables of the
    model's provider; another provider's variables point at a server that is not involved.
    """
    model_kwargs = model.get("model_kwargs")
    if isinstance(model_kwargs, Mapping):
        for key in ("api_base", "base_url"):
            if configured := model_kwargs.get(key):
                return str(configured)
    name = str(model.get("model_name") or os.environ.get("MSWEA_MODEL_NAME") or "")
    provider = name.split("/", 1)[0] if "/" in name else "openai"
    return _first_set(_BASE_VARIABLES.get(provider, ()))


def api_base_from_environment() -> str | None:
    """The API base named by any of the variables that litellm reads, or None."""
    return _first_set(_ANY_VARIABLES)


def api_key_for_model(model: Mapping[str, Any]) -> str | None:
    """The ``api_key`` in a ``model`` section, or None."""
    model_kwargs = model.get("model_kwargs")
    key = model_kwargs.get("api_key") if isinstance(model_kwargs, Mapping) else None
    return str(key) if key else None


def _first_set(variables: tuple[str, ...]) -> str | None:
    return next((value for variable in variables if (value := os.environ.get(variable))), None)
