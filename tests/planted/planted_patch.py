"""Reads planted bugs: ``*.patch`` files, each what ``git diff`` prints below a header of ``key: value`` lines.

``bug``
    One sentence: what is wrong.
``defect``
    The defect that it stands for.
``caught-by``
    What finds it, for pytest: paths, node ids, ``-k expression``. Default: the state machine.
``profile: long``
    Optional; the tests run under ``HYPOTHESIS_PROFILE=long``.
``hangs: yes``
    Optional; tests that do not end have caught it too.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from attrs import frozen

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WANTED_PATCHES = 20
STATE_MACHINE = "tests/core/test_state_machine.py"
KEYS = {"bug": None, "defect": None, "caught-by": None, "profile": "long", "hangs": "yes"}
"""What a header may hold; where a value stands, only that one."""


@frozen
class Patch:
    """One planted bug."""

    path: Path
    bug: str
    defect: str
    caught_by: tuple[str, ...]
    """Arguments for pytest."""
    is_long: bool = False
    may_hang: bool = False

    @property
    def test_paths(self) -> list[str]:
        """Files and folders that ``caught_by`` names, relative to the root."""
        items = list(self.caught_by)
        while "-k" in items:
            at = items.index("-k")
            del items[at : at + 2]
        return [item.partition("::")[0] for item in items]


def all_patches() -> list[Path]:
    """Every patch of the repository, by name."""
    return sorted(HERE.glob("*.patch"))


def load(path: Path) -> Patch:
    """Read a patch.

    Raises:
        ValueError: the header is not as it should be; the text says what is wrong.
    """
    header: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("diff --git "):
            break
        if not line.strip():
            continue
        key, _, value = (part.strip() for part in line.partition(":"))
        if key not in KEYS or not value or key in header or KEYS[key] not in (None, value):
            raise ValueError(f"{path.name}: header line {line!r}; want one 'key: value' each of {', '.join(KEYS)}")
        header[key] = value
    else:
        raise ValueError(f"{path.name}: no line 'diff --git'; make the diff with git diff")
    missing = {"bug", "defect"} - set(header)
    if missing:
        raise ValueError(f"{path.name}: the header lacks {', '.join(sorted(missing))}")
    caught_by = tuple(shlex.split(header.get("caught-by", STATE_MACHINE)))
    patch = Patch(path, header["bug"], header["defect"], caught_by, "profile" in header, "hangs" in header)
    if not patch.test_paths or any(item.startswith("-") for item in patch.test_paths):
        raise ValueError(f"{path.name}: caught-by takes paths, node ids and '-k expression', not {caught_by}")
    return patch


def git_apply(path: Path, root: Path, *options: str) -> str:
    """Output of ``git apply`` in ``root``, whatever repository that lies in and whatever the user configured.

    Raises:
        ValueError: the patch does not apply; the text is git's.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment |= {"GIT_CEILING_DIRECTORIES": str(root.parent), "GIT_CONFIG_GLOBAL": os.devnull}
    command = ["git", "apply", *options, str(path)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"does not apply: {(done.stderr.strip().splitlines() or ['git says nothing'])[0]}")
    return done.stdout


def touched(path: Path) -> list[str]:
    """The files that a patch changes, relative to the root.

    Raises:
        ValueError: it is not a patch.
    """
    return [line.split("\t", 2)[2] for line in git_apply(path, ROOT, "--numstat").splitlines()]
