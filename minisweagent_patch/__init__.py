"""Announce mini-swe-agent's instances to a thunderagent router as programs, and release them.

Importing this package loads the standard library only; litellm and mini-swe-agent are imported
when the patch is installed or a model class is asked for.
"""

from __future__ import annotations

from typing import Any

from minisweagent_patch.errors import (
    LitellmUnusableError,
    NotInstalledError,
    PatchError,
    UnpatchedReferenceWarning,
    UnsupportedSignatureError,
    UnsupportedVersionError,
)
from minisweagent_patch.litellm_setup import check_litellm, lift_connection_limit
from minisweagent_patch.model import MODEL_CLASS_NAMES, model_class, program_model
from minisweagent_patch.patching import install, patched, uninstall, wrap
from minisweagent_patch.programs import active_program_ids, program, release_active
from minisweagent_patch.stopping import release_on_termination

__all__ = [
    "LitellmUnusableError",
    "NotInstalledError",
    "PatchError",
    "UnpatchedReferenceWarning",
    "UnsupportedSignatureError",
    "UnsupportedVersionError",
    "active_program_ids",
    "check_litellm",
    "install",
    "lift_connection_limit",
    "patched",
    "program",
    "program_model",
    "release_active",
    "release_on_termination",
    "uninstall",
    "wrap",
]


def __getattr__(name: str) -> Any:
    """``ProgramModel`` and its siblings, made on first use since their base classes import litellm."""
    if name in MODEL_CLASS_NAMES:
        return model_class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
