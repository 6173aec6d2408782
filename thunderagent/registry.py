"""Finds scheduling policies through the entry-point group ``thunderagent.policies``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

from thunderagent.errors import ConfigError
from thunderagent.policy import OptionError, Policy, UnknownOption

__all__ = ["GROUP", "load_policy", "make_policy", "policy_entry_points", "source_of"]

GROUP = "thunderagent.policies"

_OURS = "thunderagent"
"""The distribution of the built-in policies."""


def policy_entry_points() -> dict[str, EntryPoint]:
    """Installed policies by name.

    Raises:
        ConfigError: two distributions register different objects under one name.
    """
    found: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        known = found.get(entry.name)
        if known is not None and known.value != entry.value:
            both = " and ".join(f"{each.value} of {source_of(each)}" for each in (known, entry))
            raise ConfigError(f"two policies are named {entry.name!r}: {both}; uninstall one")
        found[entry.name] = entry
    return found


def source_of(entry: EntryPoint) -> str:
    """The distribution that registers a policy."""
    return "an unknown distribution" if entry.dist is None else entry.dist.name


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def load_policy(name: str) -> type[Policy]:
    """The class of an installed policy.

    Raises:
        ConfigError: unknown (the known ones are named), not importable, or not a ``Policy``.
    """
    installed = policy_entry_points()
    entry = installed.get(name)
    if entry is None:
        names = ", ".join(installed) or "none: is the package installed?"
        raise ConfigError(f"unknown policy {name!r}; installed: {names}")
    try:
        found = entry.load()
    except Exception as error:  # a third party's module may fail in any way
        remedy = f"mend or uninstall {source_of(entry)}"
        raise ConfigError(
            f"policy {name!r} ({entry.value}) does not load: {_in_one_line(error)}; {remedy}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Policy)):
        raise ConfigError(f"policy {name!r} ({entry.value}) is not a subclass of thunderagent.policy.Policy")
    declared = getattr(found, "name", None)
    if declared != name:
        raise ConfigError(f"policy {entry.value} is registered as {name!r} but its `name` is {declared!r}")
    return found


def _whose(name: str, option: str, text: str) -> str | None:
    """Which built-in policies other than ``name`` have such an option, in words; None where none has."""
    owners = []
    for other, entry in policy_entry_points().items():
        if other == name or source_of(entry) != _OURS:
            continue
        try:
            load_policy(other).from_options({option: text})
        except UnknownOption:
            continue
        except OptionError:
            pass  # it has it, for other values
        owners.append(repr(other))
    if not owners:
        return None
    return f"{option!r} is an option of {'policy' if len(owners) == 1 else 'policies'} {' and '.join(owners)}"


def make_policy(name: str, options: Mapping[str, str]) -> Policy:
    """Build a policy from its options.

    Raises:
        ConfigError: as ``load_policy``, or an option that the policy does not take.
    """
    kind = load_policy(name)
    try:
        return kind.from_options(options)
    except OptionError as error:
        told = [" ".join(str(error).split())]
        if isinstance(error, UnknownOption):
            told += (hint for option in error.options if (hint := _whose(name, option, options.get(option, ""))))
        raise ConfigError("; ".join(told)) from error
    except Exception as error:  # as above
        raise ConfigError(f"policy {name!r} does not start: {_in_one_line(error)}") from error
