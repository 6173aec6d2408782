"""The model classes, over stand-ins for mini-swe-agent's."""

from __future__ import annotations

import gc
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
from patch_stubs import RouterStub, fake_mini_swe_agent

import minisweagent_patch
from minisweagent_patch import LitellmUnusableError, PatchError, active_program_ids, program, program_model


class PlainModel:
    """A model class as mini-swe-agent's: keeps its keyword arguments."""

    def __init__(self, **kwargs: Any) -> None:
        if kwargs.get("model_name") == "broken":
            raise ValueError("no such model")
        self.config = kwargs

    @property
    def program_id(self) -> str:
        """The id it was given."""
        program_id = self.config["model_kwargs"]["extra_body"]["program_id"]
        assert isinstance(program_id, str)
        return program_id


@pytest.fixture(autouse=True)
def libraries(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A mini-swe-agent 2.4.6 with a litellm that works; returns the litellm."""
    fake_mini_swe_agent(monkeypatch, "2.4.6")
    litellm = ModuleType("litellm")
    litellm.completion = lambda **arguments: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "litellm", litellm)
    for name in ("models", "models.litellm_model"):
        monkeypatch.setitem(sys.modules, f"minisweagent.{name}", ModuleType(name))
    sys.modules["minisweagent.models.litellm_model"].LitellmModel = PlainModel  # type: ignore[attr-defined]
    return litellm


def kwargs_for(router: RouterStub, **more: Any) -> dict[str, Any]:
    """The keyword arguments get_model passes."""
    return {"model_name": "hosted_vllm/m", "model_kwargs": {"api_base": router.api_base}, **more}


def wait_until_released() -> None:
    """Wait for the releases that finalisers began."""
    gc.collect()
    minisweagent_patch.release_active(2.0)


def test_model_announces_itself_and_is_released_when_dropped(router: RouterStub) -> None:
    """Each object is one program: fresh id, the default timeout, one release when it goes."""
    models = [minisweagent_patch.ProgramModel(**kwargs_for(router)) for _ in range(2)]
    ids = [model.program_id for model in models]
    assert models[0].config["model_kwargs"]["timeout"] == 7200
    assert isinstance(models[0], PlainModel)
    assert active_program_ids() == tuple(ids)
    assert router.releases == []
    del models
    wait_until_released()
    assert sorted(router.released_ids) == sorted(ids)


def test_model_class_has_the_name_users_configure() -> None:
    """mini-swe-agent writes the class's dotted name into trajectories."""
    cls = minisweagent_patch.ProgramModel
    assert (cls.__module__, cls.__name__) == ("minisweagent_patch", "ProgramModel")
    assert minisweagent_patch.ProgramModel is cls


def test_model_under_an_active_program_keeps_its_id(router: RouterStub) -> None:
    """Under the patched launcher the instance's own id stays, and only that one is released."""
    with program("outer", api_base=router.api_base) as program_id:
        model_kwargs = {"api_base": router.api_base, "extra_body": {"program_id": program_id}}
        model = minisweagent_patch.ProgramModel(model_name="m", model_kwargs=model_kwargs)
        assert model.program_id == program_id
        del model
        wait_until_released()
    assert router.released_ids == [program_id]


def test_base_that_raises_is_released(router: RouterStub) -> None:
    """A model that cannot be built leaves no program behind."""
    with pytest.raises(ValueError, match="no such model"):
        program_model(PlainModel)(**kwargs_for(router) | {"model_name": "broken"})
    assert len(router.releases) == 1


def test_unusable_litellm_is_said_before_the_first_call(libraries: ModuleType, router: RouterStub) -> None:
    """The constructor fails with the remedy instead of minutes of retries."""

    def completion(**arguments: Any) -> None:
        raise ModuleNotFoundError("No module named 'mcp'", name="mcp")

    libraries.completion = completion  # type: ignore[attr-defined]
    with pytest.raises(LitellmUnusableError, match="pip install mcp"):
        minisweagent_patch.ProgramModel(**kwargs_for(router))
    assert router.releases == []


def test_model_class_missing_in_this_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """1.x has no text-based class of its own; the error is not one mini-swe-agent hides."""
    fake_mini_swe_agent(monkeypatch, "1.17.5")
    with pytest.raises(PatchError, match=r"1\.17\.5 has no model class for ProgramTextbasedModel"):
        _ = minisweagent_patch.ProgramTextbasedModel


def test_unknown_attribute_raises() -> None:
    """The lazy classes leave other names alone."""
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = minisweagent_patch.Nonsense


def test_import_loads_the_standard_library_only() -> None:
    """Importing the package pulls in neither a client library nor the daemon nor mini-swe-agent."""
    script = (
        "import sys; before = set(sys.modules); import minisweagent_patch; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names); "
        "assert new == {'minisweagent_patch'}, new"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
