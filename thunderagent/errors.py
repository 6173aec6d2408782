"""One tree of errors that a client may see; each class fixes its HTTP status and its stable code."""

from __future__ import annotations

import errno
import os
from typing import ClassVar

from thunderagent.core.commands import Refuse, RefuseCode

__all__ = [
    "BackendGone",
    "BackendUnavailable",
    "BadProgramId",
    "BadRequest",
    "BodyTooLarge",
    "ConfigError",
    "Forbidden",
    "HoldLimitReached",
    "InternalError",
    "InvalidJson",
    "MethodNotAllowed",
    "ModelNotFound",
    "NotFound",
    "ProfilingOff",
    "ProgramWasReleased",
    "QueueFull",
    "RouterError",
    "ShuttingDown",
    "TooManyPrograms",
    "Unauthorized",
    "listening_failure",
    "refusal",
]


class ConfigError(Exception):
    """Something in flags, environment or configuration file that the user has to mend; exit status 2."""


def listening_failure(host: str, port: int, error: OSError) -> str:
    """Why nobody can listen there, and what to do, for a ``ConfigError`` or its like."""
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; choose another with --port"
    number = error.errno or 0  # of a failed look-up of the name it is below 0
    return f"cannot listen on {host}:{port}: {os.strerror(number) if number > 0 else error.strerror or error}"


class RouterError(Exception):
    """What a client gets instead of an answer, as an OpenAI-shaped error object.

    ``param`` names the offending field; ``retry_after_seconds`` becomes the Retry-After header.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    type: ClassVar[str] = "InternalServerError"

    def __init__(self, message: str, *, param: str | None = None, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        return self.message


class InternalError(RouterError):
    """A bug of the router."""


class BadRequest(RouterError):
    """The request makes no sense."""

    status, code, type = 400, "invalid_request", "BadRequestError"


class InvalidJson(BadRequest):
    """The body is not a JSON object."""

    code = "invalid_json"


class BadProgramId(BadRequest):
    """A program id that is no printable text of 1 to 256 bytes."""

    code = "invalid_program_id"


class ProfilingOff(BadRequest):
    """Profiles were asked for and the daemon runs without ``--profile``."""

    code = "profiling_off"


class Unauthorized(RouterError):
    """No token, or a wrong one."""

    status, code, type = 401, "invalid_api_key", "AuthenticationError"


class Forbidden(RouterError):
    """An admin call from another host while no admin token is configured."""

    status, code, type = 403, "admin_only", "PermissionDeniedError"


class NotFound(RouterError):
    """No such path, program or backend."""

    status, code, type = 404, "not_found", "NotFoundError"


class ModelNotFound(NotFound):
    """No backend serves the model."""

    code = "model_not_found"


class MethodNotAllowed(RouterError):
    """The path has no such method."""

    status, code, type = 405, "method_not_allowed", "BadRequestError"


class ProgramWasReleased(RouterError):
    """The program was released while the turn was held."""

    status, code, type = 409, "program_released", "ConflictError"


class BodyTooLarge(RouterError):
    """The body is over ``--max-body-bytes``."""

    status, code, type = 413, "body_too_large", "BadRequestError"


class BackendGone(RouterError):
    """Backends took the request and broke off before they answered."""

    status, code, type = 502, "backend_unavailable", "BadGatewayError"


class BackendUnavailable(RouterError):
    """No backend takes turns."""

    status, code, type = 503, "no_backend", "ServiceUnavailableError"


class HoldLimitReached(RouterError):
    """No place within ``--max-hold-seconds``."""

    status, code, type = 503, "hold_limit", "ServiceUnavailableError"


class QueueFull(RouterError):
    """Too many turns wait already."""

    status, code, type = 503, "queue_full", "ServiceUnavailableError"


class TooManyPrograms(RouterError):
    """The router tracks as many programs as it may."""

    status, code, type = 503, "too_many_programs", "ServiceUnavailableError"


class ShuttingDown(RouterError):
    """The router drains."""

    status, code, type = 503, "shutting_down", "ServiceUnavailableError"


_REFUSALS: dict[RefuseCode, type[RouterError]] = {
    RefuseCode.MODEL_NOT_FOUND: ModelNotFound,
    RefuseCode.PROGRAM_RELEASED: ProgramWasReleased,
    RefuseCode.HOLD_LIMIT: HoldLimitReached,
    RefuseCode.QUEUE_FULL: QueueFull,
    RefuseCode.TOO_MANY_PROGRAMS: TooManyPrograms,
    RefuseCode.BACKEND_UNAVAILABLE: BackendUnavailable,
    RefuseCode.BACKEND_GONE: BackendGone,
}


def refusal(command: Refuse) -> RouterError:
    """The error that answers a turn which the scheduler refused."""
    param = "model" if command.code is RefuseCode.MODEL_NOT_FOUND else None
    kind = _REFUSALS[command.code]
    return kind(command.message, param=param, retry_after_seconds=command.retry_after_seconds)
