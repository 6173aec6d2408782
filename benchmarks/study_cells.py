"""Runs of the simulator that are kept on disk: what was computed by the same sources is not computed again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from attrs import define, field

from thunderagent.simulator.figures import Figures
from thunderagent.simulator.study import Task, run_all

__all__ = ["Cells"]

_ROOT = Path(__file__).parents[1]
_SOURCES = (
    *("thunderagent/core/*.py", "thunderagent/emulator/*.py", "thunderagent/health.py"),
    *("thunderagent/simulator/*.py", "policies/*.py"),
)


def _fingerprint() -> str:
    """Of all sources that results depend on."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _SOURCES for path in _ROOT.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@define(eq=False)
class Cells:
    """One file per run in ``folder``, named by a hash of the run and of the sources."""

    folder: Path
    sources: str = field(factory=_fingerprint)
    """What stands for them."""

    def _path(self, task: Task) -> Path:
        return self.folder / f"{hashlib.sha256(f'{self.sources} {task!r}'.encode()).hexdigest()[:32]}.json"

    def known(self, task: Task) -> Figures | None:
        """What the run gave; None where it has not been done."""
        try:
            text = self._path(task).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        return Figures.from_dict(json.loads(text)["figures"])

    def run(
        self, tasks: Sequence[Task], *, workers: int | None, on_done: Callable[[Task], None]
    ) -> dict[Task, Figures]:
        """The figures of all, those that are missing computed, the longest first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        results = {task: figures for task in tasks if (figures := self.known(task)) is not None}
        for task in results:
            on_done(task)
        missing = sorted((task for task in tasks if task not in results), key=_size, reverse=True)
        for task, figures in run_all(missing, workers=workers) if missing else ():
            results[task] = figures
            self._keep(task, figures)
            on_done(task)
        return results

    def _keep(self, task: Task, figures: Figures) -> None:
        path = self._path(task)
        text = json.dumps({"task": repr(task), "figures": figures.as_dict()})
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)


def _size(task: Task) -> float:
    return task.scenario.replicas * task.scenario.horizon_seconds
