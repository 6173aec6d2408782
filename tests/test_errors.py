"""The errors that clients see: their statuses and codes are part of the API and stand in this table."""

from __future__ import annotations

import pytest

from thunderagent import errors
from thunderagent.core.commands import Refuse, RefuseCode
from thunderagent.core.ids import TurnId
from thunderagent.errors import RouterError, refusal

TABLE = {
    "BackendGone": (502, "backend_unavailable", "BadGatewayError"),
    "BackendUnavailable": (503, "no_backend", "ServiceUnavailableError"),
    "BadProgramId": (400, "invalid_program_id", "BadRequestError"),
    "BadRequest": (400, "invalid_request", "BadRequestError"),
    "BodyTooLarge": (413, "body_too_large", "BadRequestError"),
    "Forbidden": (403, "admin_only", "PermissionDeniedError"),
    "HoldLimitReached": (503, "hold_limit", "ServiceUnavailableError"),
    "InternalError": (500, "internal_error", "InternalServerError"),
    "InvalidJson": (400, "invalid_json", "BadRequestError"),
    "MethodNotAllowed": (405, "method_not_allowed", "BadRequestError"),
    "ModelNotFound": (404, "model_not_found", "NotFoundError"),
    "NotFound": (404, "not_found", "NotFoundError"),
    "ProfilingOff": (400, "profiling_off", "BadRequestError"),
    "ProgramWasReleased": (409, "program_released", "ConflictError"),
    "QueueFull": (503, "queue_full", "ServiceUnavailableError"),
    "ShuttingDown": (503, "shutting_down", "ServiceUnavailableError"),
    "TooManyPrograms": (503, "too_many_programs", "ServiceUnavailableError"),
    "Unauthorized": (401, "invalid_api_key", "AuthenticationError"),
}
REFUSALS = {
    RefuseCode.MODEL_NOT_FOUND: errors.ModelNotFound,
    RefuseCode.PROGRAM_RELEASED: errors.ProgramWasReleased,
    RefuseCode.HOLD_LIMIT: errors.HoldLimitReached,
    RefuseCode.QUEUE_FULL: errors.QueueFull,
    RefuseCode.TOO_MANY_PROGRAMS: errors.TooManyPrograms,
    RefuseCode.BACKEND_UNAVAILABLE: errors.BackendUnavailable,
    RefuseCode.BACKEND_GONE: errors.BackendGone,
}


def _kinds() -> dict[str, type[RouterError]]:
    found = {name: getattr(errors, name) for name in errors.__all__}
    return {
        name: kind
        for name, kind in found.items()
        if isinstance(kind, type) and issubclass(kind, RouterError) and kind is not RouterError
    }


def test_every_error_has_the_status_code_and_type_that_the_table_fixes() -> None:
    """Clients match on these: a change or an addition is made here as well, on purpose."""
    assert {name: (kind.status, kind.code, kind.type) for name, kind in _kinds().items()} == TABLE


def test_no_two_errors_share_a_code() -> None:
    """A code says which error it is, whatever the status."""
    codes = [code for _, code, _ in TABLE.values()]
    assert len(set(codes)) == len(codes)


def test_every_subclass_is_exported_and_in_the_tree() -> None:
    """An error that is not exported would be missing from the tables above."""

    def below(kind: type[RouterError]) -> set[str]:
        return {kind.__name__}.union(*(below(each) for each in kind.__subclasses__()))

    assert below(RouterError) - {"RouterError"} == set(TABLE)


@pytest.mark.parametrize("code", RefuseCode)
def test_every_refusal_of_the_scheduler_becomes_its_error(code: RefuseCode) -> None:
    """The code that the scheduler names is the one that the client reads; only the model is a field's fault."""
    error = refusal(Refuse(TurnId(1), code, "why", 7.0))
    assert type(error) is REFUSALS[code]
    assert (error.code, str(error), error.retry_after_seconds) == (code.value, "why", 7.0)
    assert error.param == ("model" if code is RefuseCode.MODEL_NOT_FOUND else None)


def test_error_carries_its_attributes_and_shows_its_message() -> None:
    """The message is what a client reads; the rest is set where it is known."""
    plain = errors.QueueFull("full")
    assert (str(plain), plain.message, plain.param, plain.retry_after_seconds) == ("full", "full", None, None)
    full = errors.BadProgramId("bad", param="program_id", retry_after_seconds=1.0)
    assert (full.param, full.retry_after_seconds) == ("program_id", 1.0)


def test_config_error_is_no_router_error() -> None:
    """What the operator must mend never reaches a client as an answer of its own."""
    assert not issubclass(errors.ConfigError, RouterError)
