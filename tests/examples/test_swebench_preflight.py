"""The checks before a run over SWE-bench."""

from __future__ import annotations

import shutil
import socket
from collections import namedtuple
from pathlib import Path

import pytest
from examples_stubs import BackendStub, serving

from examples.processes import free_port
from examples.swebench import dataset, preflight
from examples.swebench.preflight import GIB, Problem

_Usage = namedtuple("_Usage", "total used free")


def test_backend_when_healthy_and_serving_is_no_problem() -> None:
    """Health, models and the model's name are all there."""
    with BackendStub(serving("qwen", "other")) as backend:
        assert preflight.check_backend(backend.url, "qwen") == []


def test_backend_when_model_is_not_served_names_what_is() -> None:
    """The remedy gives a name that would work."""
    with BackendStub(serving("qwen")) as backend:
        found = preflight.check_backend(backend.url, "llama")

    assert found == [
        Problem(
            f"backend {backend.url} does not serve 'llama' but qwen",
            "give MODEL=qwen, or serve it there (--served-model-name llama)",
        )
    ]


@pytest.mark.parametrize(
    ("pages", "start"),
    [
        ({}, "does not answer /health: HTTP Error 404"),
        ({"/health": ""}, "does not list its models: HTTP Error 404"),
        ({"/health": "", "/v1/models": '{"data": 3}'}, "does not list its models: "),
    ],
)
def test_backend_when_it_answers_something_else_is_a_problem(pages: dict[str, str], start: str) -> None:
    """Each step of the check has its own words."""
    with BackendStub(pages) as backend:
        (found,) = preflight.check_backend(backend.url, "qwen")

    assert found.what.startswith(f"backend {backend.url} {start}")
    assert found.fatal


def test_backend_when_nothing_listens_or_no_address_is_a_problem() -> None:
    """A refused connection and a text that is no address are both said, never raised."""
    port = free_port()

    (refused,) = preflight.check_backend(f"http://127.0.0.1:{port}", "qwen")
    (odd,) = preflight.check_backend("gpu-node:8000", "qwen")

    assert "Connection refused" in refused.what
    assert refused.remedy == f"start it (vllm serve qwen --port {port}) or correct BACKENDS"
    assert odd.what == "backend 'gpu-node:8000' is not an http address"


def test_port_when_taken_is_a_problem() -> None:
    """Another listener on the router's port is found before anything is started."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        found = preflight.check_port("127.0.0.1", port)

    assert found == [
        Problem(
            f"the router can't listen on 127.0.0.1:{port}: Address already in use",
            "stop what listens there, or give another PORT",
        )
    ]
    assert preflight.check_port("127.0.0.1", free_port()) == []


def test_docker_when_missing_or_not_running_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No command and a daemon that does not answer are told apart."""
    monkeypatch.setenv("MSWEA_DOCKER_EXECUTABLE", str(tmp_path / "docker"))
    missing = preflight.check_docker()
    _script(tmp_path / "docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    down = preflight.check_docker()
    _script(tmp_path / "docker", f"echo {tmp_path}")
    up = preflight.check_docker()

    assert missing[0] is None
    assert missing[1][0].what == f"no {tmp_path / 'docker'} command"
    assert down[1][0].what == "the Docker daemon does not answer: Cannot connect to the Docker daemon"
    assert up == (tmp_path, [])


def _script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(("free_gib", "fatal"), [(200, None), (60, False), (5, True)])
def test_disk_when_short_is_a_warning_or_fatal(
    free_gib: int, fatal: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less than all images need is a warning; less than 20 GiB stops the run."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(500 * GIB, 0, free_gib * GIB))

    found = preflight.check_disk(tmp_path, 300)

    assert [problem.fatal for problem in found] == ([] if fatal is None else [fatal])
    if found:
        assert found[0].what == f"{free_gib} GiB free at {tmp_path}; the images of 300 instances take about 120 GiB"


def test_output_when_a_file_is_in_the_way_is_a_problem(tmp_path: Path) -> None:
    """The directory is made where it can be."""
    (tmp_path / "file").write_text("")

    (found,) = preflight.check_output(tmp_path / "file" / "results")

    assert found.remedy == "give another OUTPUT"
    assert preflight.check_output(tmp_path / "new" / "results") == []


def test_backends_and_model_when_not_given_are_two_problems(tmp_path: Path) -> None:
    """An empty make variable arrives as an empty text."""
    wanted = preflight.Wanted((), "", "127.0.0.1", 1, "lite", "test", "local", tmp_path)

    assert [problem.what for problem in preflight.check_given(wanted)] == ["no backend is given", "no model is given"]


def test_report_when_printed_has_fatal_problems_first() -> None:
    """A warning does not hide what stops the run."""
    text = preflight.report([Problem("little disk", "make room", fatal=False), Problem("no Docker", "install it")])

    assert text == "missing: no Docker\n    install it\nwarning: little disk\n    make room"


def test_shipped_dataset_when_named_as_a_folder_has_a_test_split() -> None:
    """The loader takes the split from the file's name."""
    assert [path.name for path in sorted(dataset.DATASET.iterdir())] == ["test.jsonl"]
