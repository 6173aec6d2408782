"""The sample data set: every bug is there, shows in its tests, and goes away with the gold patch and the script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from examples.swebench import checkouts, dataset
from examples.swebench.sample import Sample, load_samples
from examples.swebench.script import SUBMIT, TOOL, engine_script, turns


def test_shipped_rows_when_made_anew_are_the_same() -> None:
    """Each row's commit, patches and test lists come out of the samples by running their tests in both states."""
    made = dataset.run_parallel(dataset.make_row, dataset.SAMPLES)

    assert made == list(dataset.load_rows().values())


def test_samples_when_counted_are_many_and_from_several_repositories() -> None:
    """At least 24 instances of at least 6 repositories, each with three or more."""
    counts = Counter(sample.repo for sample in dataset.SAMPLES)

    assert len(dataset.SAMPLES) >= 24
    assert len(counts) >= 6
    assert min(counts.values()) >= 3


def test_titles_when_searched_for_occur_in_one_statement_each() -> None:
    """The engine finds a conversation by its title, so a title occurs in its own statement only."""
    statements = {sample.instance_id: sample.problem_statement() for sample in dataset.SAMPLES}
    found = {
        sample.instance_id: [name for name, text in statements.items() if sample.title in text]
        for sample in dataset.SAMPLES
    }

    assert found == {name: [name] for name in statements}


def test_statements_when_read_hold_neither_the_fix_nor_the_deciding_tests() -> None:
    """A problem statement tells what is wrong, not the patch."""
    for sample in dataset.SAMPLES:
        statement = sample.problem_statement()
        assert not [edit for edit in sample.edits if edit.fixed.strip() in statement]
        assert sample.tests not in statement


def test_script_when_built_covers_every_sample_with_bash_calls_only() -> None:
    """One conversation per sample; each reply has a thought and calls of the bash tool within its checkout."""
    script = engine_script(dataset.SAMPLES)

    assert [conversation["match"] for conversation in script["conversations"]] == [
        sample.title for sample in dataset.SAMPLES
    ]
    for sample, conversation in zip(dataset.SAMPLES, script["conversations"], strict=True):
        for turn in conversation["turns"]:
            assert turn["content"].startswith("THOUGHT: ")
            assert {call["name"] for call in turn["tool_calls"]} == {TOOL}
            for call in turn["tool_calls"]:
                assert list(call["arguments"]) == ["command"]
                assert call["arguments"]["command"].startswith(f"cd {sample.instance_id} && ")


@pytest.mark.parametrize("sample", dataset.SAMPLES, ids=lambda sample: sample.instance_id)
def test_script_when_read_has_a_plausible_length_and_submits_last(sample: Sample) -> None:
    """Between 8 and 17 replies, of which only the last one submits."""
    replies = turns(sample)

    assert 8 <= len(replies) <= 17
    assert [SUBMIT in reply.commands for reply in replies] == [False] * (len(replies) - 1) + [True]


def _play(sample: Sample, directory: Path) -> str:
    """Run the sample's commands in a fresh checkout and judge what they submit."""
    directory.mkdir()
    checkouts.create(sample, directory / sample.instance_id)
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    output = ""
    for turn in engine_script([sample])["conversations"][0]["turns"]:
        for call in turn["tool_calls"]:
            output = subprocess.run(
                call["arguments"]["command"],
                shell=True,
                cwd=directory,
                env={**checkouts.git_environment(), "PATH": path},
                capture_output=True,
                text=True,
                check=False,
            ).stdout
    marker, _, patch = output.partition("\n")
    assert marker == "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
    row = dataset.load_rows()[sample.instance_id]
    return str(checkouts.judge(sample, row, patch, directory / "judged"))


def test_script_when_played_on_one_sample_per_repository_resolves_it() -> None:
    """The commands alone find, fix and submit; the demo plays all of them through mini-swe-agent."""
    samples = list({sample.repo: sample for sample in dataset.SAMPLES}.values())

    assert dataset.run_parallel(_play, samples) == ["resolved"] * len(samples)


def test_judge_when_patch_is_empty_or_wrong_says_so(tmp_path: Path) -> None:
    """An empty patch, one that does not apply and one that fixes nothing are told apart."""
    sample = dataset.SAMPLES[0]
    row = dataset.load_rows()[sample.instance_id]
    harmless = (
        "diff --git a/NOTES b/NOTES\nnew file mode 100644\n--- /dev/null\n+++ b/NOTES\n@@ -0,0 +1 @@\n+nothing\n"
    )

    empty = checkouts.judge(sample, row, " \n", tmp_path / "empty")
    torn = checkouts.judge(sample, row, row["patch"].replace("-  ", "-x  "), tmp_path / "torn")
    idle = checkouts.judge(sample, row, harmless, tmp_path / "idle")

    deciding = tuple(json.loads(row["FAIL_TO_PASS"]))
    assert empty == checkouts.Verdict((), (), "empty patch")
    assert torn.error is not None
    assert "git apply" in torn.error
    assert idle == checkouts.Verdict(deciding, ())
    assert str(idle) == f"{len(deciding)} deciding tests still fail, 0 others broke"


def test_sample_file_when_malformed_is_named(tmp_path: Path) -> None:
    """A file that lacks a section, or has one twice, is refused by its name."""
    (tmp_path / "calspan-1.txt").write_text("@@ title\nx\n@@ read\na\n")
    with pytest.raises(ValueError, match=r"calspan-1\.txt: missing or unknown section 'search'"):
        load_samples(tmp_path)

    (tmp_path / "calspan-1.txt").write_text("@@ title\nx\n@@ title\ny\n")
    with pytest.raises(ValueError, match=r"calspan-1\.txt: two sections 'title'"):
        load_samples(tmp_path)
