"""Reads ``--policy-option key=value`` into a policy's attrs settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import attrs

from thunderagent.policy import OptionError, UnknownOption

__all__ = ["read_options"]

_Settings = TypeVar("_Settings", bound=attrs.AttrsInstance)

_TRUE, _FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}
_BOUNDS = {"<": "below", "<=": "at most", ">": "above"}


def read_options(
    policy: str, settings: _Settings, options: Mapping[str, str], *, also: tuple[str, ...] = ()
) -> _Settings:
    """Return ``settings`` (an attrs instance) with the options in place of its values.

    ``also``: options that the caller has read itself, to be named with the others. The type of each present value
    says how its option is read, its field's validator which values it may have. Numbers must not be negative.

    Raises:
        UnknownOption: an unknown option (the known ones are named).
        OptionError: a value of the wrong kind.
    """
    known: dict[str, Any] = attrs.asdict(settings, recurse=False)
    for name, text in options.items():
        if name not in known:
            names = ", ".join(sorted((*known, *also))) or "none"
            raise UnknownOption(f"policy {policy!r} has no option {name!r}; it has: {names}", [name])
        value = _read(policy, name, text, type(known[name]))
        try:
            settings = attrs.evolve(settings, **{name: value})  # type: ignore[misc]  # bound above
        except ValueError:
            wanted = _wanted(attrs.fields_dict(type(settings))[name].validator)
            raise OptionError(f"policy {policy!r}: option {name} must be {wanted}, got {text!r}") from None
    return settings


def _wanted(validator: Any) -> str:
    """What a validator of attrs asks for, in words: one of some choices, or a number above or below a bound."""
    choices = getattr(validator, "options", None)
    if choices:
        return " or ".join(choices)
    return f"{_BOUNDS[validator.compare_op]} {validator.bound}"


def _read(policy: str, name: str, text: str, kind: type[Any]) -> Any:
    def wrong(wanted: str) -> OptionError:
        return OptionError(f"policy {policy!r}: option {name} must be {wanted}, got {text!r}")

    if kind is bool:
        if text.lower() not in _TRUE | _FALSE:
            raise wrong("true or false")
        return text.lower() in _TRUE
    if kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            raise wrong("a whole number" if kind is int else "a number") from None
        if not 0 <= value < float("inf"):
            raise wrong("a finite number of at least 0")
        return value
    return text
