"""The errors and the warning this package raises; each message says what was wrong and what to do."""

from __future__ import annotations

SUPPORTED_VERSIONS = "1.8.0 to 1.17.x and 2.0.0 to 2.4.x"


class PatchError(RuntimeError):
    """The patch cannot work here; base class of the errors below."""


class NotInstalledError(PatchError):
    """mini-swe-agent is not installed in this interpreter."""

    def __str__(self) -> str:
        return (
            "mini-swe-agent is not installed in this Python environment; "
            f"install a supported version ({SUPPORTED_VERSIONS}), e.g. pip install 'thunderagent[swebench]'"
        )


class UnsupportedVersionError(PatchError):
    """The installed mini-swe-agent lies outside the versions that were tested.

    Attributes:
        installed: the version found, as mini-swe-agent states it.
    """

    def __init__(self, installed: str) -> None:
        super().__init__(installed)
        self.installed = installed

    def __str__(self) -> str:
        return (
            f"mini-swe-agent {self.installed} is installed; the patch supports {SUPPORTED_VERSIONS}. "
            "Install one of those, or wrap your own runner with minisweagent_patch.program()"
        )


class UnsupportedSignatureError(PatchError):
    """A function to be wrapped does not take what the patch has to replace.

    Attributes:
        function: its dotted name.
        found: its signature as text.
        expected: what the patch needs.
    """

    def __init__(self, function: str, found: str, expected: str) -> None:
        super().__init__(function, found, expected)
        self.function = function
        self.found = found
        self.expected = expected

    def __str__(self) -> str:
        return (
            f"{self.function}{self.found} cannot be patched: expected {self.expected}. "
            "Use minisweagent_patch.program() around the run instead"
        )


class LitellmUnusableError(PatchError):
    """The installed litellm fails before it sends a request, so every model call would fail.

    Attributes:
        version: of litellm.
        reason: the import error's text.
        missing: the top-level package that is missing, or None when it is not known.
    """

    def __init__(self, version: str, reason: str, missing: str | None) -> None:
        super().__init__(version, reason, missing)
        self.version = version
        self.reason = reason
        self.missing = missing

    def __str__(self) -> str:
        extra = f", or pip install {self.missing}" if self.missing else ""
        return (
            f"litellm {self.version} cannot make the agent's model calls: {self.reason}. "
            f"Install a version that can: pip install 'litellm>=1.101,<1.105'{extra}"
        )


class UnpatchedReferenceWarning(UserWarning):
    """A module imported ``process_instance`` by name before the patch and keeps the unpatched function."""
