"""Pytest plugin of ``plant.py``, which puts it beside the patched packages and loads it with ``-p``."""

from __future__ import annotations

from pathlib import Path


def pytest_configure() -> None:
    """Make sure that the copy is under test, and stop hypothesis at the first failure.

    Raises:
        AssertionError: a package was imported from elsewhere, as from the editable install.
    """
    import hypothesis

    import policies
    import thunderagent

    here = Path(__file__).resolve().parent
    for package in (thunderagent, policies):
        found = Path(package.__file__).resolve()
        assert here in found.parents, f"{package.__name__} comes from {found}, not from {here}"
    # Shrinking takes up to five minutes for a failure that nobody reads.
    searching = [hypothesis.Phase.explicit, hypothesis.Phase.reuse, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("planted", phases=searching, report_multiple_bugs=False)
    hypothesis.settings.load_profile("planted")
