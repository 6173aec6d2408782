"""A program's life in this process: unique ids, one release, threads, forks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time

import pytest
from patch_stubs import RouterStub

from minisweagent_patch import active_program_ids, program, release_active
from minisweagent_patch.programs import Program, new_program_id


def test_program_is_released_when_its_block_ends(router: RouterStub) -> None:
    """The id is active inside the block and released once after it."""
    with program("task-17", api_base=router.api_base) as program_id:
        assert re.fullmatch(r"task-17-[0-9a-f]{32}", program_id)
        assert active_program_ids() == (program_id,)
        assert router.releases == []
    assert router.releases == [("/programs/release", program_id, None)]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_program_is_released_whatever_ends_its_block(error: BaseException, router: RouterStub) -> None:
    """Every exception passes through unchanged, after one release."""
    with pytest.raises(type(error)) as raised, program("t", api_base=router.api_base) as program_id:
        raise error
    assert raised.value is error
    assert router.released_ids == [program_id]


def test_explicit_release_url_beats_environment_and_api_base(
    router: RouterStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Argument, then THUNDERAGENT_RELEASE_URL, then the API base, then litellm's variables."""
    monkeypatch.setenv("THUNDERAGENT_RELEASE_URL", f"{router.url}/environment/v1")
    monkeypatch.setenv("OPENAI_BASE_URL", f"{router.url}/openai/v1")
    monkeypatch.setenv("THUNDERAGENT_API_KEY", "key")
    with program("t", api_base=router.api_base, release_url=f"{router.url}/argument"):
        pass
    with program("t", api_base=router.api_base):
        pass
    monkeypatch.delenv("THUNDERAGENT_RELEASE_URL")
    with program("t", api_key="own"):
        pass
    assert [(path, key) for path, _, key in router.releases] == [
        ("/argument/programs/release", "Bearer key"),
        ("/environment/programs/release", "Bearer key"),
        ("/openai/programs/release", "Bearer own"),
    ]


@pytest.mark.parametrize(
    ("api_base", "messages"),
    [
        (None, ["no API base is configured, so programs are not released; set THUNDERAGENT_RELEASE_URL"]),
        ("not a url", ["'not a url' is not an http(s) URL, so programs are not released"]),
    ],
)
def test_unknown_api_base_is_said_once_and_releases_nothing(
    api_base: str | None, messages: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A run without a known router goes on; the log says so once."""
    for _ in range(2):
        with program("t", api_base=api_base):
            pass
    assert caplog.messages == messages
    assert active_program_ids() == ()


def test_ids_are_unique_short_and_printable() -> None:
    """Any instance name gives a fresh id of at most 256 bytes without control characters."""
    names = ["astropy__astropy-1", "a b/c\n\x00é", "x" * 1000, "", "---"]
    ids = [new_program_id(name, "swe") for name in names for _ in range(2)]
    assert len(set(ids)) == len(ids)
    for each in ids:
        assert re.fullmatch(r"swe-[A-Za-z0-9._-]+-[0-9a-f]{32}", each)
        assert len(each.encode()) <= 256
    assert ids[0].startswith("swe-astropy__astropy-1-")


def test_hanging_release_does_not_hold_the_run_up(router: RouterStub) -> None:
    """The block ends within the limit; the release is given up."""
    router.hang = threading.Event()
    started = time.monotonic()
    with program("t", api_base=router.api_base, release_seconds=0.2):
        pass
    assert time.monotonic() - started < 1.0


def test_many_threads_release_each_program_once(router: RouterStub) -> None:
    """Programs share nothing; released twice at the same time, each goes out once."""
    seen: list[str] = []

    def run(number: int) -> None:
        with program(f"t{number}", api_base=router.api_base) as program_id:
            seen.append(program_id)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(router.released_ids) == sorted(seen)
    assert len(set(seen)) == 24


def test_release_active_releases_what_is_left_once(router: RouterStub) -> None:
    """The way out of a process releases all that is active; a later release does nothing."""
    programs = [Program(f"p{number}", f"{router.url}/programs/release") for number in range(20)]
    release_active(2.0)
    for each in programs:
        each.release()
    assert sorted(router.released_ids) == sorted(f"p{number}" for number in range(20))
    assert active_program_ids() == ()


def test_release_active_keeps_to_its_time(router: RouterStub) -> None:
    """Twenty hanging releases cost the limit once, not twenty times."""
    router.hang = threading.Event()
    programs = [Program(f"p{number}", f"{router.url}/programs/release", None, 0.3) for number in range(20)]
    started = time.monotonic()
    release_active(0.2)
    assert time.monotonic() - started < 1.0
    router.hang.set()
    for each in programs:
        each.release()
        each.wait_released(2.0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_releases_nothing_of_its_parent(router: RouterStub) -> None:
    """A child that unwinds through the parent's block leaves the parent's program alone; its own it releases."""
    script = f"""
import os, sys
from minisweagent_patch import active_program_ids, program
with program("parent", api_base="{router.api_base}") as parent:
    child = os.fork()
    if child == 0:
        assert active_program_ids() == ()
        with program("child", api_base="{router.api_base}"):
            pass
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert active_program_ids() == (parent,)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
    assert [each.split("-")[0] for each in router.released_ids] == ["child", "parent"]


def test_exit_releases_programs_of_daemon_threads(router: RouterStub) -> None:
    """What no block released is released when the interpreter ends."""
    script = f"""
import threading
from minisweagent_patch import program
inside = threading.Event()
def run():
    with program("left", api_base="{router.api_base}"):
        inside.set()
        threading.Event().wait()
threading.Thread(target=run, daemon=True).start()
inside.wait()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
    assert [each.split("-")[0] for each in router.released_ids] == ["left"]
