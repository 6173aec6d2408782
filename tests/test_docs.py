"""The documentation is true: its tables are those of the code, its commands exist, its examples run."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from enum import Enum
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import attrs
import click
import httpx
import pytest
from aiohttp import web
from prometheus_client import Counter, Histogram

import minisweagent_patch
from minisweagent_patch.release import send_release
from policies.least_kv import LeastKv
from policies.pause_resume import PRESETS, PauseResume
from policies.working_set import Options
from thunderagent import cli, errors, identity
from thunderagent.config import OPTIONS, Settings, read_settings
from thunderagent.core import commands, events
from thunderagent.core.cluster import Cluster
from thunderagent.core.program import TRANSITIONS
from thunderagent.core.scheduler import Scheduler
from thunderagent.emulator.server import EmulatorConfig
from thunderagent.emulator.server import create_app as create_engine
from thunderagent.policy import OptionError
from thunderagent.registry import load_policy, make_policy
from thunderagent.server.app import create_app
from thunderagent.telemetry.metrics import Metrics
from thunderagent.testing import PolicyContract, SchedulerDriver

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for folder in (ROOT, ROOT / "docs", ROOT / "policies")
    for page in folder.glob("*.md")
)
ROUTER_IN_DOCS = "http://127.0.0.1:8300"
BUILT_IN = ("affinity", "least-kv", "pause-resume", "round-robin", "working-set")


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", read(page), flags=re.MULTILINE | re.DOTALL)


def block_with(page: str, language: str, text: str) -> str:
    """The one block that holds the text."""
    (found,) = [block for block in blocks(page, language) if text in block]
    return found


def rows(page: str, *headings: str) -> list[list[str]]:
    """The cells of the one table with these headings, without backticks around a whole cell."""
    head = "| " + " | ".join(headings) + " |\n"
    (start,) = [match.end() for match in re.finditer(re.escape(head), read(page))]
    lines = read(page)[start:].split("\n\n", 1)[0].splitlines()[1:]
    return [[_bare(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def _bare(cell: str) -> str:
    text = cell.strip()
    return text.strip("`") if text.count("`") == 2 and text[0] == text[-1] == "`" else text


def shown(value: object) -> str:
    """A default as the tables write it."""
    if value is None or value in ((), {}):
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value.value if isinstance(value, Enum) else value)


# Links and commands


def _anchors(page: str) -> set[str]:
    without_code = re.sub(r"^```.*?^```", "", read(page), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", without_code, flags=re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_inside_the_repository_lead_somewhere(page: str) -> None:
    """Every relative link names a file that is there, and a heading of it."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        linked = (ROOT / page).parent / path if path else ROOT / page
        if not linked.exists() or (anchor and anchor not in _anchors(linked.resolve().relative_to(ROOT).as_posix())):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_named_exist(page: str) -> None:
    """Each ``make NAME`` in code is a target of the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    code = "\n".join([*blocks(page, "sh"), *re.findall(r"`(make [^`\n]+)`", read(page))])
    named = set(re.findall(r"^make ([a-z-]+)", code, flags=re.MULTILINE))
    assert named - targets == set()


def _command(name: str) -> click.Command:
    group = cli._group
    found = group.get_command(click.Context(group), name)
    assert found is not None, name
    return found


@pytest.mark.parametrize("page", PAGES)
def test_command_lines_use_flags_that_exist(page: str) -> None:
    """Each ``thunderagent ...`` command line in a code block uses flags of that command."""
    unknown = []
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.search(r"(?:^|\s)(?:python -m )?thunderagent (.*)", line.split(" #")[0])
            if found is None:
                continue
            words = found.group(1).split()
            command = _command("serve" if words[0].startswith("-") else words[0])
            flags = {flag for option in command.params for flag in option.opts}
            unknown += [word for word in words if word.startswith("--") and word not in flags]
    assert unknown == []


# Tables


def test_options_table_is_that_of_the_configuration() -> None:
    """README lists every option once, in the code's order, with its default."""
    settings = Settings()
    defaults = {**attrs.asdict(settings, recurse=False), **attrs.asdict(settings.scheduler, recurse=False)}
    expected = []
    for option in OPTIONS:
        default = shown(defaults.get(option.name))
        expected.append([option.flag, {"true": "on", "false": "off"}.get(default, default)])
    assert [row[:2] for row in rows("README.md", "option", "default", "meaning")] == expected


def test_configuration_example_is_read(tmp_path: Path) -> None:
    """The TOML example of README is a configuration file, the commented lines included."""
    example = block_with("README.md", "toml", "[[backends]]")
    file = tmp_path / "router.toml"
    file.write_text(example, encoding="utf-8")
    settings = read_settings({}, {}, file)
    assert [backend.url for backend in settings.backends] == ["http://gpu1:8000", "https://gpu2.example.org"]
    assert settings.policy_options == {"growth_reserve": "0.1"}
    assert settings.scheduler.max_hold_seconds == 900
    assert (settings.backends[1].api_key, settings.backends[1].verify_tls) == ("the key of this backend", True)
    file.write_text(example.replace("# ca_file", "ca_file"), encoding="utf-8")
    with pytest.raises(errors.ConfigError, match=r"ca_file .*/etc/ssl/our-ca\.pem"):
        read_settings({}, {}, file)


def test_metrics_table_is_that_of_the_code() -> None:
    """README lists every metric with its labels, in the code's order."""
    cluster = Cluster()
    scheduler = Scheduler(make_policy("affinity", {}), cluster=cluster)
    scheduler.handle(events.BackendAdded(events.BackendId("http://a"), None, 1_000), 0.0)
    cluster.tool_times.learn(1.0)
    metrics = Metrics(cluster, scheduler.settings)
    metrics.show_kv_events(lambda backend: 1, lambda backend: 0)
    expected: dict[str, str] = {}
    for metric in vars(metrics).values():
        if isinstance(metric, (Counter, Histogram)):
            (family,) = metric.describe()
            suffix = "_total" if isinstance(metric, Counter) else ""
            expected[family.name + suffix] = ", ".join(metric._labelnames)
    for family in metrics.registry.collect():
        if family.type == "gauge":
            expected[family.name] = ", ".join(family.samples[0].labels)
    table = rows("README.md", "metric", "labels", "meaning")
    assert [(name, labels) for name, labels, _ in table] == list(expected.items())


@pytest.mark.parametrize("page", PAGES)
def test_metrics_named_exist(page: str) -> None:
    """Each ``thunderagent_...`` name in prose is in README's table."""
    known = {row[0] for row in rows("README.md", "metric", "labels", "meaning")}
    named = set(re.findall(r"`(thunderagent_[a-z_]+)(?=[`{\[])", read(page))) - {"thunderagent_profiles"}
    assert named - known == set()


def test_endpoints_table_is_that_of_the_server() -> None:
    """README names every route of the application, and no other."""
    app = create_app(read_settings({"backends": "http://127.0.0.1:9"}, {}, None))
    served = {f"{route.method} {route.resource.canonical}" for route in app.router.routes() if route.resource}
    served = {route for route in served if not route.startswith("HEAD ")}
    named = set()
    for endpoint, _, text in rows("README.md", "endpoint", "access", "what"):
        method = endpoint.split()[0]
        named |= {
            endpoint,
            *(f"{method} {path}" for path in re.findall(r"`(/[^` ]+)`", text) if "without" not in text),
        }
    assert named - {"POST /v1"} == served


def test_error_codes_listed_are_those_of_the_code() -> None:
    """README lists every code that the router answers with, under its status."""

    def tree(kind: type[errors.RouterError]) -> Iterator[type[errors.RouterError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from tree(child)

    (text,) = re.findall(r"with these codes: (.*?)\. A 503", read("README.md"), flags=re.DOTALL)
    listed = {(part.split()[0], code) for part in text.split(";") for code in re.findall(r"`(\w+)`", part)}
    assert listed == {(str(kind.status), kind.code) for kind in tree(errors.RouterError)} | {
        ("502", "backend_disconnected")
    }


@pytest.mark.parametrize("name", BUILT_IN)
def test_policy_pages_list_the_options_of_the_policy(name: str) -> None:
    """Each built-in policy's page lists its options with their defaults, and README links to it."""
    assert f"(policies/{name}.md)" in read("README.md")
    page = f"policies/{name}.md"
    assert read(page).startswith(f"# {name}\n")
    if name == "pause-resume":
        values = [attrs.asdict(PRESETS[preset]) for preset in ("default", "paper")]
        expected = [[option, *(shown(preset[option]) for preset in values)] for option in values[0]]
        assert [row[:3] for row in rows(page, "option", "default", "paper", "unit", "meaning")] == expected
    elif name == "working-set":
        defaults = attrs.asdict(Options())
        expected = [[option, shown(value)] for option, value in defaults.items()]
        assert [row[:2] for row in rows(page, "option", "default", "unit", "meaning")] == expected
    elif name == "least-kv":
        defaults = attrs.asdict(LeastKv()._options)
        expected = [[option, shown(value)] for option, value in defaults.items()]
        assert [row[:2] for row in rows(page, "option", "default", "unit", "meaning")] == expected
    else:
        assert "**Options.** None." in read(page)
        with pytest.raises(OptionError):
            load_policy(name).from_options({"option": "1"})
    assert PauseResume.from_options({"preset": "paper"}).settings == PRESETS["paper"]


def test_architecture_lists_every_event_command_and_transition() -> None:
    """The tables of docs/architecture.md name what the core has."""
    text = read("docs/architecture.md")
    declared = [*events.__all__, *commands.__all__]
    helpers = {"Event", "Prefix", "Command", "Notice", "HoldReason", "PauseReason", "RefuseCode"}
    assert [name for name in declared if name not in helpers and f"`{name}`" not in text] == []
    listed = set()
    for old, new, _ in rows("docs/architecture.md", "from", "to", "when"):
        listed |= {(status, new) for status in old.split(", ")}
    assert listed == {(old.value, new.value) for old, new in TRANSITIONS}


def test_architecture_lists_the_headers_that_identify() -> None:
    """Every header that names a program or a branch is listed, the program's in order of precedence."""
    text = read("docs/architecture.md").split("## Identity")[1].split("\n## ")[0]
    named = re.findall(r"`([A-Za-z_-]+)(?:: true)?`", text)
    programs = list(identity._PROGRAM_HEADERS)
    assert [name for name in named if name in programs] == programs
    others = (*identity._PARENT_HEADERS, *identity._BRANCH_HEADERS, *identity._FINAL_HEADERS)
    assert [name for name in others if name not in named] == []


def test_architecture_names_files_that_exist() -> None:
    """Every source file that a documentation page names is there."""
    missing = []
    for page in PAGES:
        for name in re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.(?:py|html))`", read(page)):
            places = [ROOT / name, ROOT / "thunderagent" / name, ROOT / "thunderagent" / "core" / name]
            if not any(place.exists() for place in places):
                missing.append(f"{page}: {name}")
    assert missing == []


# Examples


def _run(code: str, name: str, into: dict[str, Any] | None = None) -> dict[str, Any]:
    """Execute an example as a module of its own."""
    module = ModuleType(name)
    namespace = vars(module)
    namespace.update(into or {})
    exec(compile(code, f"<{name}>", "exec"), namespace)
    return namespace


def _install(directory: Path, project: Mapping[str, Any]) -> None:
    """What pip would write for the entry points of a project."""
    written = directory / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    written.mkdir()
    (written / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
    (written / "entry_points.txt").write_text("\n".join(lines) + "\n")


def test_readme_policy_is_found_by_its_entry_point_and_caps_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """README's policy has under 40 lines, is loaded under its name, and holds the program over the cap."""
    source = block_with("README.md", "python", "program_cap.py")
    project = tomllib.loads(block_with("README.md", "toml", "program-cap"))
    assert len(source.splitlines()) < 40
    (tmp_path / f"{project['tool']['setuptools']['py-modules'][0]}.py").write_text(source)
    _install(tmp_path, project["project"])
    monkeypatch.syspath_prepend(tmp_path)
    try:
        policy = make_policy("program-cap", {"programs": "2"})
    finally:
        sys.modules.pop("program_cap", None)
    driver = SchedulerDriver(policy)
    driver.add("A")
    first, second, third = (driver.arrive(name) for name in ("p1", "p2", "p3"))
    one_off = driver.arrive(None)
    assert (sorted(driver.running), sorted(driver.held)) == ([first, second, one_off], [third])
    driver.finish(first)
    assert sorted(driver.held) == [third]
    driver.release("p1")
    assert sorted(driver.running) == [second, third, one_off]
    driver.check_policy()
    with pytest.raises(OptionError):
        type(policy).from_options({"programs": "many"})


def _guide() -> dict[str, Any]:
    source, tests = blocks("docs/writing-a-policy.md", "python")
    return _run(tests, "test_spare_idle", _run(source, "spare_idle"))


GUIDE = _guide()
TestGuidePolicyContract = GUIDE["TestSpareIdle"]


@pytest.mark.parametrize("name", [name for name in GUIDE if name.startswith("test_")])
def test_guide_policy_passes_the_tests_of_the_guide(name: str) -> None:
    """The tests shown in docs/writing-a-policy.md pass for the policy shown there."""
    GUIDE[name]()


class TestReadmePolicyContract(PolicyContract):
    """README's policy does what every policy must do."""

    make_policy = _run(block_with("README.md", "python", "program_cap.py"), "program_cap")["ProgramCap"]


@pytest.fixture
async def router() -> AsyncIterator[str]:
    """A router's address, with an emulated engine behind it."""
    engine = web.AppRunner(create_engine(EmulatorConfig(kv_tokens=40_000, speed=50)), handler_cancellation=True)
    await engine.setup()
    await web.TCPSite(engine, "127.0.0.1", 0).start()
    settings = read_settings({"backends": f"http://127.0.0.1:{engine.addresses[0][1]}"}, {}, None)
    runner = web.AppRunner(create_app(settings), handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()
    await engine.cleanup()


@pytest.mark.e2e
@pytest.mark.parametrize("part", ["programs/release", "from minisweagent_patch import program"])
async def test_client_examples_run_and_leave_no_program(
    router: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """README's two client examples are answered through the router, and their programs are released."""
    # The router shares its loop with an import of openai: releases may take longer than clients allow by default.
    monkeypatch.setattr(httpx, "post", partial(httpx.post, timeout=60.0))
    monkeypatch.setattr(
        "minisweagent_patch.programs.send_release", lambda url, name, key, _: send_release(url, name, key, 60.0)
    )
    code = block_with("README.md", "python", part).replace(ROUTER_IN_DOCS, router)
    namespace = await asyncio.to_thread(_run, code, "example")
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{router}/programs") as programs,
        session.get(f"{router}/metrics") as metrics,
    ):
        assert await programs.json() == {}
        assert 'thunderagent_turns_total{outcome="completed"} 1.0' in await metrics.text()
    await asyncio.to_thread(namespace["client"].close)


@pytest.mark.e2e
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_example_streams_to_the_end(router: str) -> None:
    """README's curl command is answered with a stream that ends with [DONE], and its program is known then."""
    (command,) = re.findall(
        r"^curl .*?\}'$", block_with("README.md", "sh", "curl -N"), flags=re.MULTILINE | re.DOTALL
    )
    process = await asyncio.create_subprocess_shell(
        command.replace(ROUTER_IN_DOCS, router), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    answer, _ = await asyncio.wait_for(process.communicate(), 60)
    lines = [line for line in answer.decode().splitlines() if line]
    assert lines[0].startswith("data: {")
    assert lines[-1] == "data: [DONE]"


def test_names_of_the_patch_that_readme_uses_exist() -> None:
    """What the documentation imports from the patch is exported by it."""
    imported = re.findall(r"from minisweagent_patch import ([\w, ]+)", read("README.md"))
    names = {name.strip() for line in imported for name in line.split(",")}
    assert names <= set(minisweagent_patch.__all__)


# The dashboard


def test_dashboard_is_one_page_that_writes_text_only() -> None:
    """It loads nothing from elsewhere, and what the router says never becomes markup."""
    page = read("thunderagent/server/dashboard.html")
    assert re.findall(r"https?://|innerHTML|outerHTML|insertAdjacentHTML|document\.write|@import|\bsrc=", page) == []


@pytest.mark.e2e
async def test_dashboard_reads_fields_that_the_router_answers(router: str) -> None:
    """Every field of /health, /backends and /programs that the page reads is there."""
    page = read("thunderagent/server/dashboard.html")
    turn = {"model": "emulated", "program_id": "p", "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{router}/v1/chat/completions", json=turn) as answer:
            assert answer.status == 200
        health, programs, backends = [
            await (await session.get(f"{router}/{path}")).json() for path in ("health", "programs", "backends")
        ]
    (backend,) = health["per_backend"].values()
    standings = re.findall(r'"(\w+)"', re.findall(r"const STANDINGS = (.*?);", page)[0])
    assert {f"{standing}_tokens" for standing in standings} - set(backend) == set()
    for name, answered in (("health", health), ("backend", backend), ("program", programs["p"])):
        reads = set(re.findall(rf"\b{name}\.([a-z_]+)\b", page)) - {"status", "value", "reason", "url"}
        assert reads - set(answered) == set()
    assert {"url", "models", "last_error"} - set(backends["backends"][0]) == set()
