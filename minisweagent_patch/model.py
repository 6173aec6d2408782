"""Model classes that announce and release their program themselves, for the stock ``mini-extra``."""

from __future__ import annotations

import importlib
import threading
import weakref
from typing import Any

from minisweagent_patch.endpoint import api_base_for_model, api_key_for_model
from minisweagent_patch.errors import PatchError
from minisweagent_patch.inject import carries_active_id, with_program_id
from minisweagent_patch.litellm_setup import check_litellm, lift_connection_limit
from minisweagent_patch.programs import Program, new_program_id, open_program
from minisweagent_patch.settings import CONNECTIONS_VARIABLE, Settings, number_from_environment
from minisweagent_patch.versions import installed_version, major_version

# name here -> (module, class) by mini-swe-agent's major version
_BASES: dict[str, dict[int, tuple[str, str]]] = {
    "ProgramModel": {
        1: ("minisweagent.models.litellm_model", "LitellmModel"),
        2: ("minisweagent.models.litellm_model", "LitellmModel"),
    },
    "ProgramTextbasedModel": {
        2: ("minisweagent.models.litellm_textbased_model", "LitellmTextbasedModel"),
    },
    "ProgramResponseModel": {
        1: ("minisweagent.models.litellm_response_api_model", "LitellmResponseAPIModel"),
        2: ("minisweagent.models.litellm_response_model", "LitellmResponseModel"),
    },
}

MODEL_CLASS_NAMES = tuple(_BASES)

_lock = threading.RLock()
_classes: dict[str, type[Any]] = {}


def model_class(name: str) -> type[Any]:
    """The class called ``name`` (of ``MODEL_CLASS_NAMES``) for the installed mini-swe-agent.

    Imports litellm (seconds) on its first use.

    Raises:
        PatchError: no supported mini-swe-agent, or this version has no such base class.
    """
    with _lock:
        if name not in _classes:
            found = _BASES[name].get(major_version())
            if found is None:
                raise PatchError(f"mini-swe-agent {installed_version()} has no model class for {name}")
            base = getattr(importlib.import_module(found[0]), found[1])
            _classes[name] = program_model(base, name)
        return _classes[name]


def program_model(base: type[Any], name: str = "ProgramModel") -> type[Any]:
    """A subclass of a mini-swe-agent model class that is one program per object.

    The object makes its id when it is built, sends it with every call (``program_id``), and is
    released when it is finalised or the process ends. Its ``base`` takes the ``model`` section as
    keyword arguments and passes ``model_kwargs`` on.
    """
    # mini-swe-agent 1.x parses actions from text and passes no tools.
    tools = "Textbased" not in base.__name__ and major_version() > 1

    def __init__(self: Any, **kwargs: Any) -> None:
        check_litellm(tools)
        lift_connection_limit(int(number_from_environment(CONNECTIONS_VARIABLE, 0)))
        kwargs, opened = _announced(kwargs)
        try:
            base.__init__(self, **kwargs)
        except BaseException:
            if opened is not None:
                opened.release()
            raise
        if opened is not None:
            # The registry of programs releases what is left at exit, in bounded time.
            weakref.finalize(self, opened.release_soon).atexit = False

    namespace = {"__init__": __init__, "__module__": "minisweagent_patch", "__doc__": program_model.__doc__}
    return type(name, (base,), namespace)


def _announced(model: dict[str, Any]) -> tuple[dict[str, Any], Program | None]:
    """The ``model`` section with a program id, and its program; None where an outer layer made one."""
    config = {"model": model}
    if carries_active_id(config):
        return model, None
    settings = Settings()
    program_id = new_program_id("model", prefix="swe")
    opened = open_program(program_id, settings, api_base_for_model(model), api_key_for_model(model))
    # The class is known to call litellm, whatever model_class the section named.
    section = {key: value for key, value in model.items() if key != "model_class"}
    injected = with_program_id({"model": section}, opened.id, settings.effective_timeout_seconds())
    return injected["model"], opened
