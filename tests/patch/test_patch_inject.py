"""The per-instance copy of a configuration."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest

from minisweagent_patch.inject import carries_active_id, with_program_id
from minisweagent_patch.programs import Program
from minisweagent_patch.settings import Settings


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model": None},
        {"model": {}},
        {"model": {"model_kwargs": None}},
        {"model": {"model_kwargs": {"extra_body": None}}},
        {"model": {"model_kwargs": {"extra_body": {}}}},
    ],
)
def test_missing_or_none_sections_become_mappings(config: dict[str, Any]) -> None:
    """Whatever part of the path is absent, the id arrives at its end."""
    assert with_program_id(config, "p", 0) == {"model": {"model_kwargs": {"extra_body": {"program_id": "p"}}}}


def test_other_keys_stay_and_the_callers_config_is_unchanged() -> None:
    """All else is carried over; the mappings that were passed in keep their content."""
    config = {
        "agent": {"step_limit": 3},
        "environment": {"cwd": "/"},
        "model": {"model_name": "m", "model_kwargs": {"temperature": 0, "extra_body": {"top_k": 5}}},
    }
    before = copy.deepcopy(config)
    injected = with_program_id(config, "p", 7200)
    assert injected == {
        "agent": {"step_limit": 3},
        "environment": {"cwd": "/"},
        "model": {
            "model_name": "m",
            "model_kwargs": {"temperature": 0, "timeout": 7200, "extra_body": {"top_k": 5, "program_id": "p"}},
        },
    }
    injected["environment"]["image"] = "one instance's"
    assert config == before


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"model": ["x"]}, "config['model'] must be a mapping, not list"),
        ({"model": {"model_kwargs": []}}, "config['model']['model_kwargs'] must be a mapping, not list"),
        (
            {"model": {"model_kwargs": {"extra_body": "x"}}},
            "config['model']['model_kwargs']['extra_body'] must be a mapping, not str",
        ),
        (None, "config must be a mapping, not NoneType"),
    ],
)
def test_section_that_is_no_mapping_raises_with_its_path(config: Any, path: str) -> None:
    """The error names the key path and the type found."""
    with pytest.raises(TypeError) as raised:
        with_program_id(config, "p", 0)
    assert str(raised.value).startswith(path)


def test_fixed_program_id_is_replaced_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """A configured id would make all instances one program."""
    config = {"model": {"model_kwargs": {"extra_body": {"program_id": "fixed"}}}}
    with caplog.at_level(logging.WARNING, "minisweagent_patch"):
        first, second = with_program_id(config, "a", 0), with_program_id(config, "b", 0)
    assert [each["model"]["model_kwargs"]["extra_body"] for each in (first, second)] == [
        {"program_id": "a"},
        {"program_id": "b"},
    ]
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({}, 7200),
        ({"model_class": "litellm_response"}, 7200),
        ({"model_class": "minisweagent_patch.ProgramModel"}, 7200),
        ({"model_kwargs": {"timeout": 5}}, 5),
        ({"model_kwargs": {"request_timeout": 5}}, None),
        ({"model_class": "openrouter"}, None),
    ],
)
def test_timeout_is_set_where_a_litellm_model_has_none(model: dict[str, Any], expected: float | None) -> None:
    """The user's own timeout stays, and other clients' requests get no such key."""
    injected = with_program_id({"model": model}, "p", 7200)
    assert injected["model"]["model_kwargs"].get("timeout") == expected


@pytest.mark.parametrize(
    ("argument", "environment", "expected"),
    [
        (None, {}, 7200),
        (None, {"THUNDERAGENT_CLIENT_TIMEOUT_SECONDS": "60"}, 60),
        (None, {"THUNDERAGENT_CLIENT_TIMEOUT_SECONDS": "0"}, 0),
        (None, {"THUNDERAGENT_CLIENT_TIMEOUT_SECONDS": "soon"}, 7200),
        (None, {"THUNDERAGENT_CLIENT_TIMEOUT_SECONDS": "nan"}, 7200),
        (None, {"REQUEST_TIMEOUT": "900"}, 0),
        (30.0, {"REQUEST_TIMEOUT": "900"}, 30),
        (0.0, {}, 0),
    ],
)
def test_timeout_follows_argument_then_environment(
    argument: float | None, environment: dict[str, str], expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An argument beats the variables, litellm's own variable counts as the user's choice, 0 means none."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Settings(client_timeout_seconds=argument).effective_timeout_seconds() == expected


@pytest.mark.parametrize("settings", [{"client_timeout_seconds": -1.0}, {"release_seconds": 0.0}])
def test_impossible_settings_raise(settings: dict[str, float]) -> None:
    """Negative times are refused where they are given."""
    with pytest.raises(ValueError, match="must be"):
        Settings(**settings)  # type: ignore[arg-type]


def test_own_active_id_is_recognised() -> None:
    """Only an id of a program that this process holds counts as announced already."""
    with Program("mine", None):
        assert carries_active_id({"model": {"model_kwargs": {"extra_body": {"program_id": "mine"}}}})
        assert not carries_active_id({"model": {"model_kwargs": {"extra_body": {"program_id": "other"}}}})
        assert not carries_active_id({"model": {"model_kwargs": {"extra_body": {"program_id": 5}}}})
        assert not carries_active_id({})
    assert not carries_active_id({"model": {"model_kwargs": {"extra_body": {"program_id": "mine"}}}})
