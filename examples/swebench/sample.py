"""Sample instances: a bug in a sample repository, its report, its tests and a scripted agent's plan.

Each is one text file, ``samples/<repo>-<number>.txt``: sections headed ``@@ name``, whose text is taken as it
stands. ``title``, ``version``, ``created`` and ``report`` make the issue; each pair of ``broken PATH`` and
``fixed`` one place of the bug; ``tests`` the module that decides whether a patch is right; the rest the plan.
"""

from __future__ import annotations

from pathlib import Path

import attrs

REPOSITORIES = Path(__file__).parent / "repos"
_SAMPLES = Path(__file__).parent / "samples"


@attrs.frozen
class Edit:
    """One place in one file, as it is with the bug and without it.

    ``path`` is relative to the repository; both snippets are whole lines and occur exactly once in their
    state of the file.
    """

    path: str
    broken: str
    fixed: str


@attrs.frozen
class Plan:
    """How the scripted agent works on the instance; ``examples.swebench.script`` makes commands of it.

    ``read`` are the files it looks at, ``search`` a command that narrows the place down, ``reproduce`` and
    ``edge`` are Python programs (``edge`` may be empty), ``cause`` is what it says before it edits. ``sed``
    are sed expressions that make the fix in the first edit's file; empty means that a Python program
    replaces the text.
    """

    read: tuple[str, ...]
    search: str
    reproduce: str
    cause: str
    edge: str = ""
    sed: tuple[str, ...] = ()


@attrs.frozen
class Sample:
    """One instance of the sample data set.

    ``number`` is the issue number, unique within ``repo``; ``tests`` is the source of a test module that is
    not in the checkout and decides whether a patch is right: each of its tests fails with the bug.
    """

    repo: str
    number: int
    version: str
    created_at: str
    title: str
    report: str
    edits: tuple[Edit, ...]
    tests: str
    plan: Plan

    @property
    def instance_id(self) -> str:
        """The id in the data set's form, ``<owner>__<repository>-<number>``."""
        return f"{self.repo}__{self.repo}-{self.number}"

    @property
    def test_path(self) -> str:
        """Where the deciding test module goes, relative to the repository."""
        return f"tests/test_issue_{self.number}.py"

    @property
    def edited_paths(self) -> tuple[str, ...]:
        """The files that the bug touches, each once, in order."""
        return tuple(dict.fromkeys(edit.path for edit in self.edits))

    def problem_statement(self) -> str:
        """The issue's title and body, as a data set gives them to an agent."""
        return f"{self.title}\n\n{self.report}"

    def files(self, *, fixed: bool) -> dict[str, str]:
        """The repository's text files by relative path, with the bug or without it.

        Raises:
            ValueError: an edit's text does not occur exactly once.
        """
        files = repository_files(self.repo)
        if fixed:
            return files
        for edit in self.edits:
            if files[edit.path].count(edit.fixed) != 1:
                raise ValueError(f"{self.instance_id}: an edit of {edit.path} does not match exactly once")
            files[edit.path] = files[edit.path].replace(edit.fixed, edit.broken)
            if files[edit.path].count(edit.broken) != 1:
                raise ValueError(f"{self.instance_id}: the bug in {edit.path} is not unique there")
        return files


def repository_files(repo: str) -> dict[str, str]:
    """The sample repository's text files in their correct state, by relative path, sorted.

    Raises:
        FileNotFoundError: there is no sample repository of that name.
    """
    root = REPOSITORIES / repo
    if not root.is_dir():
        raise FileNotFoundError(f"no sample repository {repo!r} under {REPOSITORIES}")
    paths = sorted(path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def load_samples(directory: Path = _SAMPLES) -> tuple[Sample, ...]:
    """All samples, by repository and number.

    Raises:
        ValueError: a file has a wrong form; the message names it.
    """
    samples = [_parse(path) for path in sorted(directory.glob("*.txt"))]
    return tuple(sorted(samples, key=lambda sample: (sample.repo, sample.number)))


def _parse(path: Path) -> Sample:
    repo, _, number = path.stem.rpartition("-")
    sections: dict[str, str] = {}
    edits: list[Edit] = []
    broken_path = broken = ""
    for heading, text in _sections(path):
        name, _, argument = heading.partition(" ")
        if name == "broken":
            broken_path, broken = argument, text
        elif name == "fixed":
            edits.append(Edit(broken_path, broken, text))
        elif name in sections:
            raise ValueError(f"{path.name}: two sections {name!r}")
        else:
            sections[name] = text
    try:
        plan = Plan(
            read=tuple(sections.pop("read").splitlines()),
            search=sections.pop("search").strip(),
            reproduce=sections.pop("reproduce"),
            cause=sections.pop("cause").strip(),
            edge=sections.pop("edge", ""),
            sed=tuple(sections.pop("sed", "").splitlines()),
        )
        return Sample(
            repo=repo,
            number=int(number),
            version=sections.pop("version").strip(),
            created_at=sections.pop("created").strip(),
            title=sections.pop("title").strip(),
            edits=tuple(edits),
            plan=plan,
            **sections,
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path.name}: missing or unknown section {error}") from error


def _sections(path: Path) -> list[tuple[str, str]]:
    """(heading, text) in the file's order; a text ends with exactly the newlines it has in the file."""
    sections: list[tuple[str, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.startswith("@@ "):
            sections.append((line[3:].strip(), ""))
        elif sections:
            heading, text = sections[-1]
            sections[-1] = (heading, text + line)
        elif line.strip():
            raise ValueError(f"{path.name}: text before the first section")
    return sections
