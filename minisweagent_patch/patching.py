"""Replace ``process_instance`` by one that announces each instance as a program and releases it."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar, cast

from minisweagent_patch.endpoint import api_base_for_model, api_key_for_model
from minisweagent_patch.errors import UnpatchedReferenceWarning, UnsupportedSignatureError
from minisweagent_patch.inject import carries_active_id, with_program_id
from minisweagent_patch.programs import Program, new_program_id, open_program, say_once
from minisweagent_patch.settings import Settings
from minisweagent_patch.stopping import refuse_when_stopping
from minisweagent_patch.versions import runner_modules

_Runner = TypeVar("_Runner", bound=Callable[..., Any])

_PARAMETERS = ("instance", "output_dir", "config", "progress_manager")

_lock = threading.RLock()
_installed: Settings | None = None
_contexts: list[Settings] = []
_originals: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {}  # module -> (original, ours)
_wrapped_runners: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()


def install(
    *,
    release_url: str | None = None,
    api_key: str | None = None,
    client_timeout_seconds: float | None = None,
    release_seconds: float = 3.0,
) -> None:
    """Patch mini-swe-agent's batch runners in this process until ``uninstall()``.

    Every instance then runs with a program id of its own and is released at its end. A second call
    replaces the settings. Imports the runners, not litellm. The arguments are those of ``Settings``.

    Raises:
        NotInstalledError, UnsupportedVersionError, UnsupportedSignatureError: nothing is changed.

    Warns:
        UnpatchedReferenceWarning: a module holds the unpatched function under a name of its own.
    """
    global _installed
    settings = Settings(release_url, api_key, client_timeout_seconds, release_seconds)
    with _lock:
        unpatched = _patch_modules()
        _installed = settings
    _warn_of(unpatched)


def uninstall() -> None:
    """Undo ``install()``; without one, do nothing.

    A ``patched()`` block that is still open keeps the patch until it ends. Where another tool has
    wrapped the patched function since, its wrapper stays and ours passes calls through unchanged.
    """
    global _installed
    with _lock:
        _installed = None
        _restore_if_unused()


@contextmanager
def patched(
    *,
    release_url: str | None = None,
    api_key: str | None = None,
    client_timeout_seconds: float | None = None,
    release_seconds: float = 3.0,
) -> Iterator[None]:
    """``install()`` for the length of a block; blocks nest and may overlap. Raises as ``install``."""
    settings = Settings(release_url, api_key, client_timeout_seconds, release_seconds)
    with _lock:
        unpatched = _patch_modules()
        _contexts.append(settings)
    try:
        _warn_of(unpatched)
        yield
    finally:
        with _lock:
            # By identity: an equal entry of an overlapping block would do, yet the order matters.
            index = next(i for i, each in enumerate(_contexts) if each is settings)
            del _contexts[index]
            _restore_if_unused()


def wrap(
    runner: _Runner,
    *,
    release_url: str | None = None,
    api_key: str | None = None,
    client_timeout_seconds: float | None = None,
    release_seconds: float = 3.0,
) -> _Runner:
    """A runner that announces and releases each instance, for code that holds its own reference.

    ``runner`` takes ``instance`` and ``config`` (any order, positional or keyword; more parameters
    are passed on). A function that is wrapped already is returned as it is.

    Raises:
        UnsupportedSignatureError: a parameter is missing, or it is a coroutine function.
    """
    settings = Settings(release_url, api_key, client_timeout_seconds, release_seconds)
    if runner in _wrapped_runners:
        return runner
    signature = inspect.signature(runner)
    if inspect.iscoroutinefunction(runner) or not {"instance", "config"} <= set(signature.parameters):
        expected = "a plain function with the parameters 'instance' and 'config'"
        raise UnsupportedSignatureError(_name(runner), str(signature), expected)
    wrapped = _wrapper(runner, tuple(signature.parameters), lambda: settings)
    _wrapped_runners.add(wrapped)
    return cast(_Runner, wrapped)


def _wrapper(
    runner: Callable[..., Any], parameters: tuple[str, ...], settings_now: Callable[[], Settings | None]
) -> Callable[..., Any]:
    instance_at, config_at = parameters.index("instance"), parameters.index("config")

    @functools.wraps(runner)
    def run(*args: Any, **kwargs: Any) -> Any:
        settings = settings_now()
        if settings is None:
            return runner(*args, **kwargs)
        refuse_when_stopping()
        config = _argument("config", config_at, args, kwargs)
        if config is _MISSING:
            say_once("no-config", f"{_name(runner)} was called without a config; it runs without a program id")
            return runner(*args, **kwargs)
        if carries_active_id(config):
            return runner(*args, **kwargs)
        instance = _argument("instance", instance_at, args, kwargs)
        with _opened(instance, config, settings) as opened:
            config = with_program_id(config, opened.id, settings.effective_timeout_seconds())
            if "config" in kwargs:
                kwargs["config"] = config
            else:
                args = (*args[:config_at], config, *args[config_at + 1 :])
            return runner(*args, **kwargs)

    return run


def _opened(instance: Any, config: Mapping[str, Any], settings: Settings) -> Program:
    model = config.get("model") or {}
    name = instance.get("instance_id") if isinstance(instance, Mapping) else None
    program_id = new_program_id(str(name or getattr(instance, "instance_id", "")), prefix="swe")
    return open_program(program_id, settings, api_base_for_model(model), api_key_for_model(model))


_MISSING = object()


def _argument(name: str, index: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return kwargs.get(name, args[index] if index < len(args) else _MISSING)


def _current_settings() -> Settings | None:
    with _lock:
        return _contexts[-1] if _contexts else _installed


def _patch_modules() -> list[str]:
    """Patch what is not patched yet; returns the other places that hold an unpatched function."""
    unpatched: list[str] = []
    modules = runner_modules()
    for module in modules:  # all are checked before any is changed
        _check_signature(module.process_instance, module.__name__)
    for module in modules:
        present = module.process_instance
        if _is_ours(present):
            continue
        ours = _wrapper(present, _PARAMETERS, _current_settings)
        _originals[module.__name__] = (present, ours)
        module.__dict__["process_instance"] = ours
        unpatched += _references(module, present)
    return unpatched


def _restore_if_unused() -> None:
    if _installed is not None or _contexts:
        return
    for name, (original, ours) in list(_originals.items()):
        module = sys.modules.get(name)
        if module is not None and module.__dict__.get("process_instance") is ours:
            module.__dict__["process_instance"] = original
            del _originals[name]


def _is_ours(function: Any) -> bool:
    """Whether the function is one of our wrappers, or another tool's around it that names what it wraps."""
    ours = [wrapper for _, wrapper in _originals.values()]
    for _ in range(32):  # a chain of wrappers this long is a loop
        if function is None:
            return False
        if function in ours or function in _wrapped_runners:
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def _check_signature(function: Callable[..., Any], module_name: str) -> None:
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    kinds = [parameter.kind for parameter in parameters]
    if kinds == [inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD]:
        return  # another tool's pass-through
    first, rest = parameters[: len(_PARAMETERS)], parameters[len(_PARAMETERS) :]
    required_rest = [
        parameter
        for parameter in rest
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    by_position = all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in first)
    if tuple(parameter.name for parameter in first) != _PARAMETERS or required_rest or not by_position:
        expected = f"({', '.join(_PARAMETERS)})"
        raise UnsupportedSignatureError(f"{module_name}.process_instance", str(signature), expected)


def _references(patched_module: ModuleType, original: Callable[..., Any]) -> list[str]:
    """Where else in ``sys.modules`` the original function is held, as dotted names."""
    return sorted(
        f"{name}.{attribute}"
        for name, module in list(sys.modules.items())
        if isinstance(module, ModuleType) and module is not patched_module
        for attribute, value in list(vars(module).items())
        if value is original
    )


def _warn_of(unpatched: list[str]) -> None:
    if unpatched:
        warnings.warn(
            f"{', '.join(unpatched)} was imported before the patch and stays unpatched; "
            "import it after install(), or use minisweagent_patch.wrap() on it",
            UnpatchedReferenceWarning,
            stacklevel=3,
        )


def _name(function: Callable[..., Any]) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"
