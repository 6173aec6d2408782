"""Run a checkout's unit tests and print each one's outcome as JSON; started by path, in the checkout.

It imports the standard library only, so that it runs under whatever interpreter the checkout is tried with:
``python run_unittests.py [module ...]`` prints ``{"tests.test_x.Class.test_y": "passed" | "failed", ...}``.
A module that can't be imported counts as one failed test of unittest's own naming.
"""

from __future__ import annotations

import io
import json
import os
import sys
import unittest


class _Outcomes(unittest.TextTestResult):
    """Collects one word per test; a failing subtest fails its test."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.outcomes: dict[str, str] = {}

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self.outcomes.setdefault(test.id(), "passed")

    def _fail(self, test: unittest.TestCase) -> None:
        self.outcomes[test.id()] = "failed"

    def addFailure(self, test: unittest.TestCase, err: object) -> None:
        self._fail(test)

    def addError(self, test: unittest.TestCase, err: object) -> None:
        self._fail(test)

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: object) -> None:
        if err is not None:
            self._fail(test)


def main() -> None:
    sys.path[0] = os.getcwd()
    loader = unittest.TestLoader()
    modules = sys.argv[1:]
    suite = loader.loadTestsFromNames(modules) if modules else loader.discover(".")
    result = unittest.TextTestRunner(stream=io.StringIO(), resultclass=_Outcomes).run(suite)
    assert isinstance(result, _Outcomes)
    json.dump(dict(sorted(result.outcomes.items())), sys.stdout)


if __name__ == "__main__":
    main()
