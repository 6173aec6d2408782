"""The table of a program's status, pair by pair."""

from __future__ import annotations

from itertools import product

import pytest

from thunderagent.core.program import IllegalTransition, Program, Status
from thunderagent.policy import ProgramId

LEGAL = {
    Status.NEW: {Status.ADMITTED, Status.RELEASED},
    Status.ADMITTED: {Status.YIELDING, Status.PAUSED, Status.RELEASED},
    Status.YIELDING: {Status.ADMITTED, Status.PAUSED, Status.RELEASED},
    Status.PAUSED: {Status.ADMITTED, Status.RELEASED},
    Status.RELEASED: set(),
}


@pytest.mark.parametrize(("old", "new"), list(product(Status, Status)))
def test_each_pair_of_status_is_allowed_or_raises(old: Status, new: Status) -> None:
    """A change that is not in the table raises and leaves the status as it was."""
    program = Program(ProgramId("p"), 1, status=old)
    if new in LEGAL[old]:
        program.become(new)
        assert program.status is new
        return
    with pytest.raises(IllegalTransition) as caught:
        program.become(new)
    assert program.status is old
    assert str(caught.value) == f"program 'p' cannot go from {old.value} to {new.value}"
