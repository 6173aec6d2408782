"""The emulated model's script: what a scripted agent says and runs for each sample instance.

A reply is a thought and one or two calls of the ``bash`` tool. The commands read, search, reproduce, edit, run
the tests and submit as mini-swe-agent's ``swebench.yaml`` asks; nothing else fixes the file. The order and the
wording vary with the instance, so that the conversations differ in length and in content.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from examples.swebench.sample import Edit, Sample

TOOL = "bash"
SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT && cat patch.txt"


@attrs.frozen
class Turn:
    """One reply: the text before its tool calls, and the shell commands of the calls."""

    thought: str
    commands: tuple[str, ...]


def engine_script(samples: Iterable[Sample]) -> dict[str, Any]:
    """The script file's content for the emulated engine: one conversation per sample, matched by its title.

    The commands expect a working directory in which each checkout is a folder named after its instance,
    since mini-swe-agent's local environment has one working directory for all instances.
    """
    return {
        "conversations": [
            {
                "match": sample.title,
                "turns": [
                    {
                        "content": f"THOUGHT: {turn.thought}",
                        "tool_calls": [
                            {
                                "name": TOOL,
                                "arguments": {"command": f"cd {sample.instance_id} && {command}"},
                            }
                            for command in turn.commands
                        ],
                    }
                    for turn in turns(sample)
                ],
            }
            for sample in samples
        ]
    }


def turns(sample: Sample) -> list[Turn]:
    """The agent's replies for one sample, from the first look to the submission; 11 to 17 of them."""
    order = _ORDERS[sample.number % len(_ORDERS)]
    replies = [reply for phase in order for reply in phase(sample)]
    return replies + _submission(sample)


def _pick(sample: Sample, salt: int, *variants: str) -> str:
    """One of the variants, fixed by the sample, with its names filled in."""
    variant = variants[(sample.number // 3 + salt + len(sample.title)) % len(variants)]
    return variant.format(title=sample.title, repo=sample.repo, path=sample.edits[0].path, version=sample.version)


def _look(sample: Sample) -> list[Turn]:
    thought = _pick(
        sample,
        0,
        "The report says: {title}. I start with the layout of the repository and its history, to see which "
        "modules can be involved before I read any of them closely.",
        "Let me get an overview of {repo} first: which modules there are, how large they are, what "
        "the README "
        "promises. Then I look for the code behind this report.",
        "I'll look around before I form an opinion. The issue is about {repo} {version}; I want to "
        "know how the "
        "package is laid out and where its tests are.",
    )
    return [
        Turn(
            thought,
            (
                _pick(
                    sample,
                    1,
                    "ls -la && git log --oneline && find . -name '*.py' -not -path './.git/*' | xargs wc -l",
                    "git status --short && git log --stat --format='%h %ad %s' --date=short && cat README.md",
                    "ls -R {repo} tests && cat README.md {repo}/__init__.py && wc -l {repo}/*.py tests/*.py",
                ),
            ),
        )
    ]


def _read(sample: Sample) -> list[Turn]:
    thoughts = (
        _pick(
            sample,
            2,
            "I read {path} in full; the behaviour that the report describes has to come from here or from "
            "what it calls.",
            "Now the code itself. I want to see the docstrings as well, since they say what the author meant.",
            "Next I read the module that the report points at, line by line, with numbers so that I "
            "can refer "
            "to them later.",
        ),
        _pick(
            sample,
            3,
            "That one calls into other code. Let me read this too before I judge, it may rely on the same rule.",
            "To understand what callers expect I also need the neighbouring file.",
            "I check how this fits together with the rest; a fix in the wrong layer would only hide it.",
        ),
        "One more file: I want to know what is asserted today, so that I do not change behaviour that is wanted.",
    )
    commands = [_show(sample, index, path) for index, path in enumerate(sample.plan.read)]
    if sample.number % 5 == 1 and len(commands) > 1:
        return [Turn(thoughts[0], tuple(commands[:2]))] + [Turn(thoughts[2], (command,)) for command in commands[2:]]
    return [Turn(thoughts[min(index, 2)], (command,)) for index, command in enumerate(commands)]


def _show(sample: Sample, index: int, path: str) -> str:
    forms = ("cat -n {}", "cat {}", "sed -n '1,220p' {}", "nl -ba {}")
    return forms[(sample.number + index) % len(forms)].format(path)


def _search(sample: Sample) -> list[Turn]:
    thought = _pick(
        sample,
        4,
        "I search for the names involved to see every place that takes part, and whether the same pattern "
        "occurs elsewhere.",
        "Where else is this used? If another module relies on the present behaviour, I have to know now.",
        "A quick search narrows it down to the lines that matter for this report.",
    )
    return [Turn(thought, (sample.plan.search,))]


def _tests_before(sample: Sample) -> list[Turn]:
    thought = _pick(
        sample,
        5,
        "The existing tests give me a baseline. They should all pass at this point, as the report describes "
        "something that they do not cover.",
        "Before I touch anything I run the test suite, so that I know later what I broke and what not.",
        "Does the suite pass as it is? If it does, the case from the report is simply not tested.",
    )
    return [Turn(thought, ("python -m unittest -v 2>&1",))]


def _reproduce(sample: Sample) -> list[Turn]:
    thought = _pick(
        sample,
        6,
        "I write the example from the report as a small script and run it, to see the failure with my own eyes.",
        "Time to reproduce it. The script stays until the end, then I can run it again after the fix.",
        "Let me confirm the report with a reproduction; this also tells me the exact wrong values.",
    )
    return [Turn(thought, (_write_and_run("reproduce.py", sample.plan.reproduce),))]


def _fix(sample: Sample) -> list[Turn]:
    if sample.plan.sed:
        path = sample.edits[0].path
        expressions = " ".join(f"-e {shlex.quote(expression)}" for expression in sample.plan.sed)
        command = f"sed -i {expressions} {path} && git diff"
    else:
        command = "python - <<'EOF'\n" + "\n".join(_replacement(edit) for edit in sample.edits) + "EOF\n"
    return [Turn(sample.plan.cause, (command.rstrip("\n"),))]


def _inspect(sample: Sample) -> list[Turn]:
    thought = _pick(
        sample,
        7,
        "I look at the change in its context before I run anything.",
        "The edit went through. Is it what I meant, with the right indentation and nothing else touched?",
        "Let me see the diff; it should be small.",
    )
    return [Turn(thought, ("git diff -U6",))]


def _again(sample: Sample) -> list[Turn]:
    thought = _pick(
        sample,
        8,
        "Now the reproduction again: the output should be what the report asks for.",
        "Same script, fixed code. I compare the values with those that the report expects.",
        "Does the script behave now?",
    )
    return [Turn(thought, ("python reproduce.py",))]


def _edge(sample: Sample) -> list[Turn]:
    if not sample.plan.edge:
        return []
    thought = _pick(
        sample,
        9,
        "The reported case works. I also try its neighbours, since a fix that only fits the example is not one.",
        "Let me try harder to break it, with the cases around the reported one.",
        "A few more inputs, to be sure that the rule holds in general and not just for this example.",
    )
    return [Turn(thought, (_write_and_run("edge_cases.py", sample.plan.edge),))]


def _tests_after(sample: Sample) -> list[Turn]:
    thought = _pick(
        sample,
        10,
        "The whole suite once more; nothing else may change.",
        "All tests have to pass still. I run them verbosely to see that each one really ran.",
        "Finally the regression check over all test modules.",
    )
    return [Turn(thought, ("python -m unittest -v 2>&1",))]


def _submission(sample: Sample) -> list[Turn]:
    paths = " ".join(sample.edited_paths)
    scripts = "reproduce.py edge_cases.py" if sample.plan.edge else "reproduce.py"
    create = _pick(
        sample,
        11,
        "Everything holds. I remove my scripts and write the patch with only the source file that I changed.",
        "Done with the change itself. The helper scripts go, and the patch is made from the source file alone.",
    )
    check = _pick(
        sample,
        12,
        "I check that the patch holds the intended change and nothing more, and that its headers are right.",
        "Before I submit I read the patch once: headers, one file, no stray edits.",
    )
    return [
        Turn(create, (f"rm -f {scripts} && git diff -- {paths} > patch.txt && git status --short",)),
        Turn(check, ("cat patch.txt",)),
        Turn("The patch is what I want to submit.", (SUBMIT,)),
    ]


def _write_and_run(name: str, source: str) -> str:
    return f"cat > {name} <<'EOF'\n{source.rstrip()}\nEOF\npython {name}"


def _replacement(edit: Edit) -> str:
    return (
        "from pathlib import Path\n"
        f'path = Path("{edit.path}")\n'
        'text = path.read_text(encoding="utf-8")\n'
        f"old = r'''{edit.broken}'''\n"
        f"new = r'''{edit.fixed}'''\n"
        "assert text.count(old) == 1, text.count(old)\n"
        'path.write_text(text.replace(old, new), encoding="utf-8")\n'
        f'print("edited {edit.path}")\n'
    )


_Phase = Callable[[Sample], list[Turn]]
_ORDERS: tuple[tuple[_Phase, ...], ...] = (
    (_look, _read, _search, _reproduce, _fix, _again, _edge, _tests_after),
    (_look, _tests_before, _search, _read, _reproduce, _fix, _inspect, _again, _tests_after),
    (_look, _reproduce, _read, _search, _fix, _again, _tests_after, _edge),
    (_search, _look, _read, _tests_before, _reproduce, _fix, _again, _edge, _inspect, _tests_after),
)
