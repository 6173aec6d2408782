"""Policies found through entry points: good ones, broken ones, and two of one name."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from policies.affinity import Affinity
from policies.pause_resume import PauseResume
from thunderagent.cli.policies import policies
from thunderagent.errors import ConfigError
from thunderagent.registry import load_policy, make_policy, policy_entry_points

BUILT_IN = ["affinity", "least-kv", "pause-resume", "round-robin", "working-set"]

GOOD = """
from thunderagent.policy import Policy

class Mine(Policy):
    '''Always the first.

    More to read.
    '''
    name = "mine"

    def admit(self, turn, cluster):
        return turn.eligible_backends[0].id
"""


class Site:
    """A folder of made-up distributions on ``sys.path``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, distribution: str, entry: str, module: str, source: str | None) -> None:
        """Install a distribution with one entry point ``name = module:object``; None: its module is missing."""
        metadata = self.folder / f"{distribution}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[thunderagent.policies]\n{entry}\n")
        if source is not None:
            (self.folder / f"{module}.py").write_text(textwrap.dedent(source))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Empty; its module is forgotten after the test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Site(tmp_path)
    sys.modules.pop("mine_module", None)


def test_built_in_policies_are_found_like_anybody_else_s() -> None:
    """They are entry points, loaded by name; nothing else knows them."""
    assert list(policy_entry_points()) == BUILT_IN
    assert [load_policy(name).name for name in BUILT_IN] == BUILT_IN
    assert load_policy("affinity") is Affinity


def test_options_reach_the_policy() -> None:
    """``--policy-option`` ends in the policy's settings."""
    policy = make_policy("pause-resume", {"preset": "paper", "buffer_tokens": "7"})
    assert isinstance(policy, PauseResume)
    assert (policy.settings.resume_order, policy.settings.buffer_tokens) == ("published", 7)


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("working-set", {"preset": "paper"}, "'preset' is an option of policy 'pause-resume'"),
        ("working-set", {"preset": "papr"}, "'preset' is an option of policy 'pause-resume'"),
        (
            "working-set",
            {"idle_lease_seconds": "5"},
            "'idle_lease_seconds' is an option of policies 'least-kv' and 'pause-resume'",
        ),
        ("pause-resume", {"dial": "batch"}, "'dial' is an option of policy 'working-set'"),
        (
            "round-robin",
            {"preset": "paper", "colour": "red", "dial": "1"},
            "got colour, dial, preset; 'dial' is an option of policy 'working-set'; 'preset' is an option of policy "
            "'pause-resume'",
        ),
    ],
)
def test_option_of_another_built_in_policy_names_it(name: str, options: dict[str, str], hint: str) -> None:
    """Whoever has read of an option need not search for the policy that it belongs to."""
    with pytest.raises(ConfigError) as raised:
        make_policy(name, options)
    assert str(raised.value).startswith(f"policy {name!r} ")
    assert str(raised.value).endswith(hint)


def test_option_that_nobody_has_gets_no_hint() -> None:
    """Only what the policy itself has."""
    with pytest.raises(ConfigError, match=r"no option 'colour'; it has: dial, [a-z_, ]*$"):
        make_policy("working-set", {"colour": "red"})


def test_list_shows_each_policy_its_distribution_and_first_line() -> None:
    """``thunderagent policies``."""
    result = CliRunner().invoke(policies)
    rows = [line.split(maxsplit=2) for line in result.stdout.splitlines()]
    assert (result.exit_code, result.stderr) == (0, "")
    assert [row[:2] for row in rows] == [[name, "thunderagent"] for name in BUILT_IN]
    assert rows[0][2] == "Sticky placement without admission control; never holds."
    assert {row[0] for row in rows if row[2].endswith(". (default)")} == {"working-set"}
    assert all(len(row) == 3 and row[2].removesuffix(" (default)").endswith(".") for row in rows)


def test_third_party_s_policy_is_listed_and_made(site: Site) -> None:
    """A distribution with an entry point is all it takes."""
    site.add("mine-dist", "mine = mine_module:Mine", "mine_module", GOOD)
    result = CliRunner().invoke(policies)
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("mine")]
    assert (result.exit_code, row.split(maxsplit=2)) == (0, ["mine", "mine-dist", "Always the first."])
    assert type(make_policy("mine", {})).__module__ == "mine_module"
    with pytest.raises(ConfigError, match="policy 'mine' takes no options, got a, b"):
        make_policy("mine", {"b": "1", "a": "2"})


BROKEN = {
    "missing module": (
        None,
        "policy 'mine' (mine_module:Mine) does not load: ModuleNotFoundError: No module named 'mine_module'; "
        "mend or uninstall mine-dist",
    ),
    "missing class": (
        "",
        "policy 'mine' (mine_module:Mine) does not load: "
        "AttributeError: module 'mine_module' has no attribute 'Mine'; mend or uninstall mine-dist",
    ),
    "fails on import": (
        "raise RuntimeError('two\\nlines')",
        "policy 'mine' (mine_module:Mine) does not load: RuntimeError: two lines; mend or uninstall mine-dist",
    ),
    "no class": ("Mine = 5", "policy 'mine' (mine_module:Mine) is not a subclass of thunderagent.policy.Policy"),
    "another class": (
        "class Mine: pass",
        "policy 'mine' (mine_module:Mine) is not a subclass of thunderagent.policy.Policy",
    ),
    "another name": (
        GOOD.replace('"mine"', '"theirs"'),
        "policy mine_module:Mine is registered as 'mine' but its `name` is 'theirs'",
    ),
    "no name": (
        GOOD.replace('name = "mine"', ""),
        "policy mine_module:Mine is registered as 'mine' but its `name` is None",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_policy_stops_its_start_with_one_line_and_is_listed_as_broken(case: str, site: Site) -> None:
    """Asked for by name, it is an error that says what to mend; in the list the others stay usable."""
    source, message = BROKEN[case]
    site.add("mine-dist", "mine = mine_module:Mine", "mine_module", source)
    with pytest.raises(ConfigError) as raised:
        make_policy("mine", {})
    assert str(raised.value) == message
    result = CliRunner().invoke(policies)
    assert result.exit_code == 1
    assert f"mine             mine-dist        broken: {message}\n" in result.stdout
    assert [line.split()[0] for line in result.stdout.splitlines()] == sorted([*BUILT_IN, "mine"])
    assert isinstance(make_policy("affinity", {}), Affinity)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "    def __init__(self): raise KeyError('x')",
            "policy 'mine' does not start: KeyError: 'x'",
        ),
        (
            "    @classmethod\n    def from_options(cls, options): return options['x']",
            "policy 'mine' does not start: KeyError: 'x'",
        ),
    ],
)
def test_policy_that_fails_to_start_says_how(body: str, message: str, site: Site) -> None:
    """Whatever a third party raises becomes one line."""
    site.add("mine-dist", "mine = mine_module:Mine", "mine_module", f"{GOOD}\n{body}\n")
    with pytest.raises(ConfigError) as raised:
        make_policy("mine", {})
    assert str(raised.value) == message


def test_policy_without_admit_cannot_be_made(site: Site) -> None:
    """An abstract class is no policy."""
    source = "from thunderagent.policy import Policy\nclass Mine(Policy):\n    name = 'mine'\n"
    site.add("mine-dist", "mine = mine_module:Mine", "mine_module", source)
    with pytest.raises(ConfigError, match=r"policy 'mine' does not start: TypeError: .*admit"):
        make_policy("mine", {})


def test_two_policies_of_one_name_stop_every_start_and_name_both(site: Site) -> None:
    """Which of the two was meant cannot be guessed, whichever policy is asked for."""
    site.add("mine-dist", "affinity = mine_module:Mine", "mine_module", GOOD)
    with pytest.raises(ConfigError) as raised:
        make_policy("round-robin", {})
    message = str(raised.value)
    assert message.startswith("two policies are named 'affinity': ")
    assert "mine_module:Mine of mine-dist" in message
    assert "policies.affinity:Affinity of thunderagent" in message
    assert message.endswith("; uninstall one")
    result = CliRunner().invoke(policies)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"thunderagent policies: {message}\n")


def test_same_policy_registered_twice_is_one(site: Site) -> None:
    """An editable install beside an installed one: both name the same class."""
    site.add("copy-dist", "affinity = policies.affinity:Affinity", "unused", None)
    assert list(policy_entry_points()) == BUILT_IN
    assert load_policy("affinity") is Affinity
