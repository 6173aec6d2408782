"""The release endpoint that belongs to an API base."""

from __future__ import annotations

from typing import Any

import pytest

from minisweagent_patch.endpoint import api_base_for_model, api_key_for_model, release_url


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("http://h:8300/v1", "http://h:8300/programs/release"),
        ("http://h:8300/v1/", "http://h:8300/programs/release"),
        ("http://h:8300", "http://h:8300/programs/release"),
        ("http://h:8300/", "http://h:8300/programs/release"),
        ("http://h/r/v1", "http://h/r/programs/release"),
        ("http://h/r/", "http://h/r/programs/release"),
        ("https://h/v1/chat/completions", "https://h/programs/release"),
        ("http://h/v1/responses", "http://h/programs/release"),
        ("http://[::1]:8300/v1?x=1#y", "http://[::1]:8300/programs/release"),
        ("http://user:pass@h:1/v1", "http://user:pass@h:1/programs/release"),
        ("http://h/x/programs/release", "http://h/x/programs/release"),
        (" http://h/v1 ", "http://h/programs/release"),
        ("h:8300/v1", None),
        ("ftp://h/v1", None),
        ("http://h:port/v1", None),
        ("http://[::1/v1", None),
        ("http:///v1", None),
        ("", None),
    ],
)
def test_api_base_gives_release_url(base: str, expected: str | None) -> None:
    """The API's own path elements go, a prefix stays, and what is not an http URL gives None."""
    assert release_url(base) == expected


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            {"model_name": "hosted_vllm/m", "model_kwargs": {"api_base": "http://a", "base_url": "http://b"}},
            "http://a",
        ),
        ({"model_name": "hosted_vllm/m", "model_kwargs": {"base_url": "http://b"}}, "http://b"),
        ({"model_name": "hosted_vllm/m"}, "http://hosted"),
        ({"model_name": "hosted_vllm/m", "model_kwargs": None}, "http://hosted"),
        ({"model_name": "openai/m"}, "http://openai-url"),
        ({"model_name": "gpt-x"}, "http://openai-url"),
        ({"model_name": "anthropic/m"}, None),
        ({}, "http://openai-url"),
    ],
)
def test_model_section_gives_the_api_base_litellm_uses(
    model: dict[str, Any], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration comes first, then the variables of the model's own provider, no other's."""
    monkeypatch.setenv("HOSTED_VLLM_API_BASE", "http://hosted")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://openai-url")
    monkeypatch.setenv("OPENAI_API_BASE", "http://openai-base")
    assert api_base_for_model(model) == expected


def test_model_name_from_environment_selects_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model named by MSWEA_MODEL_NAME only is of that provider."""
    monkeypatch.setenv("MSWEA_MODEL_NAME", "hosted_vllm/m")
    monkeypatch.setenv("HOSTED_VLLM_API_BASE", "http://hosted")
    assert api_base_for_model({}) == "http://hosted"


def test_api_key_is_read_from_model_kwargs() -> None:
    """A configured key is found; a missing or empty one is None."""
    assert api_key_for_model({"model_kwargs": {"api_key": "k"}}) == "k"
    assert api_key_for_model({"model_kwargs": {"api_key": ""}}) is None
    assert api_key_for_model({"model_kwargs": None}) is None
