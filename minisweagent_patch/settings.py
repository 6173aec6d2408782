"""What a caller may set, and the environment variables that stand in for it."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

RELEASE_URL_VARIABLE = "THUNDERAGENT_RELEASE_URL"
API_KEY_VARIABLE = "THUNDERAGENT_API_KEY"
CLIENT_TIMEOUT_VARIABLE = "THUNDERAGENT_CLIENT_TIMEOUT_SECONDS"
CONNECTIONS_VARIABLE = "THUNDERAGENT_CONNECTIONS"

# litellm gives up after 600 s; a turn held at the router for longer would be sent again.
DEFAULT_CLIENT_TIMEOUT_SECONDS = 7200.0

logger = logging.getLogger("minisweagent_patch")


@dataclass(frozen=True)
class Settings:
    """How instances are announced and released.

    Attributes:
        release_url: where releases are posted; None: ``THUNDERAGENT_RELEASE_URL``, else derived
            from the API base that the run uses.
        api_key: sent as a bearer token with releases; None: ``THUNDERAGENT_API_KEY``, else the
            model configuration's ``api_key``, else none is sent.
        client_timeout_seconds: put into ``model_kwargs.timeout`` where the configuration has no
            timeout; 0: leave it alone; None: ``THUNDERAGENT_CLIENT_TIMEOUT_SECONDS``, else 7200.
        release_seconds: the most that one release may delay a run, retry included.
    """

    release_url: str | None = None
    api_key: str | None = None
    client_timeout_seconds: float | None = None
    release_seconds: float = 3.0

    def __post_init__(self) -> None:
        if self.client_timeout_seconds is not None and self.client_timeout_seconds < 0:
            raise ValueError(f"client_timeout_seconds must be >= 0, not {self.client_timeout_seconds}")
        if self.release_seconds <= 0:
            raise ValueError(f"release_seconds must be > 0, not {self.release_seconds}")

    def explicit_release_url(self) -> str | None:
        """The release URL (or an API base) that was set on purpose, or None."""
        return self.release_url or os.environ.get(RELEASE_URL_VARIABLE) or None

    def explicit_api_key(self) -> str | None:
        """The key that was set on purpose, or None."""
        return self.api_key or os.environ.get(API_KEY_VARIABLE) or None

    def effective_timeout_seconds(self) -> float:
        """The client timeout to set where the user set none; 0: set none."""
        if self.client_timeout_seconds is not None:
            return self.client_timeout_seconds
        if os.environ.get("REQUEST_TIMEOUT"):  # litellm's own variable: the user chose a timeout
            return 0.0
        return number_from_environment(CLIENT_TIMEOUT_VARIABLE, DEFAULT_CLIENT_TIMEOUT_SECONDS)


def number_from_environment(variable: str, default: float) -> float:
    """The variable's value as a number >= 0; ``default`` where it is unset or, with a warning, unusable."""
    text = os.environ.get(variable, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        logger.warning("%s=%r is not a number >= 0; using %g", variable, text, default)
        return default
    return value
