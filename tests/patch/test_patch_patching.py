"""Installing, removing and living with the patch."""

from __future__ import annotations

import functools
import logging
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from patch_stubs import RouterStub, fake_mini_swe_agent, program_id_of, recording_runner

from minisweagent_patch import (
    NotInstalledError,
    UnpatchedReferenceWarning,
    UnsupportedSignatureError,
    UnsupportedVersionError,
    install,
    patched,
    uninstall,
    wrap,
)


def run(module: ModuleType, router: RouterStub, instance_id: str = "repo__x-1") -> Any:
    """Call the module's runner as mini-swe-agent's executor does."""
    return module.process_instance({"instance_id": instance_id}, "out", config_for(router), "pm")


def config_for(router: RouterStub) -> dict[str, Any]:
    """A run configuration whose API base is the stub."""
    return {"model": {"model_name": "hosted_vllm/m", "model_kwargs": {"api_base": router.api_base}}}


@pytest.mark.parametrize("version", ["1.8.0", "1.17.5", "2.0.0", "2.4.6", "2.4.99"])
def test_installed_patch_announces_and_releases_each_instance(
    version: str, router: RouterStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both layouts: arguments arrive as they were, the id is fresh, the release follows."""
    runner = recording_runner()
    module = fake_mini_swe_agent(monkeypatch, version, runner)
    install()
    assert run(module, router) == "done"
    assert run(module, router) == "done"
    first, second = runner.seen
    assert (first["instance"], first["output_dir"], first["pm"]) == ({"instance_id": "repo__x-1"}, "out", "pm")
    assert first["config"]["model"]["model_kwargs"]["timeout"] == 7200
    ids = [program_id_of(each["config"]) for each in (first, second)]
    assert all(each.startswith("swe-repo__x-1-") for each in ids)
    assert ids[0] != ids[1]
    assert router.released_ids == ids


def test_programbench_is_patched_where_it_exists(router: RouterStub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second batch runner of 2.3 and later is patched and restored too."""
    fake_mini_swe_agent(monkeypatch, "2.3.0", programbench=True)
    module = sys.modules["minisweagent.run.benchmarks.programbench"]
    original = module.process_instance
    install()
    run(module, router)
    uninstall()
    assert len(router.releases) == 1
    assert module.process_instance is original


@pytest.mark.parametrize("version", ["1.7.0", "1.18.0", "2.5.0", "2.5.0rc1", "3.0.0", "unknown"])
def test_untested_version_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the installed and the supported versions, and nothing is changed."""
    runner = recording_runner()
    module = fake_mini_swe_agent(monkeypatch, version, runner)
    with pytest.raises(UnsupportedVersionError) as raised:
        install()
    assert raised.value.installed == version
    assert version in str(raised.value)
    assert "1.8.0 to 1.17.x and 2.0.0 to 2.4.x" in str(raised.value)
    assert module.process_instance is runner


def test_missing_mini_swe_agent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without mini-swe-agent the error says what to install."""
    monkeypatch.setitem(sys.modules, "minisweagent", None)
    with pytest.raises(NotInstalledError, match=r"pip install 'thunderagent\[swebench\]'"):
        install()


def _renamed(instance: Any, output_dir: Any, cfg: Any, progress_manager: Any) -> None: ...


def _one_more(instance: Any, output_dir: Any, config: Any, progress_manager: Any, more: Any) -> None: ...


def _keyword_only(instance: Any, *, output_dir: Any, config: Any, progress_manager: Any) -> None: ...


@pytest.mark.parametrize("runner", [_renamed, _one_more, _keyword_only])
def test_different_signature_is_refused(runner: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner that takes something else is named with what was expected; nothing is changed."""
    module = fake_mini_swe_agent(monkeypatch, "2.4.6", runner)
    with pytest.raises(UnsupportedSignatureError) as raised:
        install()
    assert "expected (instance, output_dir, config, progress_manager)" in str(raised.value)
    assert "minisweagent.run.benchmarks.swebench.process_instance(instance" in str(raised.value)
    assert module.process_instance is runner


def test_optional_parameters_after_the_four_are_fine(router: RouterStub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version may add what has a default."""

    def process_instance(instance: Any, output_dir: Any, config: Any, progress_manager: Any, more: int = 1) -> Any:
        return config, more

    module = fake_mini_swe_agent(monkeypatch, "2.4.6", process_instance)
    install()
    config, more = module.process_instance({"instance_id": "i"}, "o", config_for(router), "pm", 5)
    assert more == 5
    assert router.released_ids == [program_id_of(config)]


def test_keyword_arguments_work(router: RouterStub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller may name all arguments, in any order."""
    runner = recording_runner()
    module = fake_mini_swe_agent(monkeypatch, "2.4.6", runner)
    install()
    module.process_instance(
        config=config_for(router), progress_manager="pm", output_dir="out", instance={"instance_id": "i"}
    )
    assert router.released_ids == [program_id_of(runner.seen[0]["config"])]


def test_wrong_call_raises_as_the_original_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call without a configuration fails in the runner, not in the patch."""
    module = fake_mini_swe_agent(monkeypatch, "2.4.6")
    install()
    with pytest.raises(TypeError, match="missing 2 required positional arguments: 'config'"):
        module.process_instance({}, "out")


@pytest.mark.parametrize("error", [RuntimeError("get_model failed"), KeyboardInterrupt(), SystemExit(1)])
def test_instance_that_raises_is_released(
    error: BaseException, router: RouterStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """get_model runs outside mini-swe-agent's own try; every exception passes unchanged."""
    runner = recording_runner(error)
    module = fake_mini_swe_agent(monkeypatch, "2.4.6", runner)
    install()
    with pytest.raises(type(error)) as raised:
        run(module, router)
    assert raised.value is error
    assert router.released_ids == [program_id_of(runner.seen[0]["config"])]


def test_non_mapping_section_raises_before_the_run(router: RouterStub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Roulette model's list of model_kwargs is refused with its path; nothing is released."""
    runner = recording_runner()
    module = fake_mini_swe_agent(monkeypatch, "2.4.6", runner)
    install()
    with pytest.raises(TypeError, match=r"config\['model'\]\['model_kwargs'\] must be a mapping, not list"):
        module.process_instance({"instance_id": "i"}, "o", {"model": {"model_kwargs": []}}, "pm")
    assert (runner.seen, router.releases) == ([], [])


def test_threads_get_ids_of_their_own(router: RouterStub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker threads that share one configuration run as different programs, each released once."""
    runner = recording_runner()
    module = fake_mini_swe_agent(monkeypatch, "1.17.5", runner)
    install()
    config = config_for(router)
    threads = [
        threading.Thread(target=module.process_instance, args=({"instance_id": "same"}, "o", config, "pm"))
        for _ in range(24)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = {program_id_of(each["config"]) for each in runner.seen}
    assert len(ids) == 24
    assert sorted(router.released_ids) == sorted(ids)
    assert config == config_for(router)


def test_install_twice_is_removed_by_one_uninstall(router: RouterStub, monkeypatch: pytest.MonkeyPatch) -> None:
    """install() is idempotent: one layer, one id, the last settings; uninstall() likewise."""
    runner = recording_runner()
    module = fake_mini_swe_agent(monkeypatch, "2.4.6", runner)
    install()
    install(client_timeout_seconds=60)
    run(module, router)
    assert len(router.releases) == 1
    assert runner.seen[0]["config"]["model"]["model_kwargs"]["timeout"] == 60
    uninstall()
    uninstall()
    assert module.process_instance is runner


def test_patched_blocks_nest_and_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The patch stays until the last block has ended, in whatever order they end."""
    runner = recording_runner()
    module = fake_mini_swe_agent(monkeypatch, "2.4.6", runner)
    first, second = patched(), patched()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert module.process_instance is not runner
    second.__exit__(None, None, None)
    assert module.process_instance is runner


def test_patched_block_within_install_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block does not undo an install() around it, and uninstall() does not undo an open block."""
    runner = recording_runner()
    module = fake_mini_swe_agent(monkeypatch, "2.4.6", runner)
    install()
    with patched():
        uninstall()
        assert module.process_instance is not runner
    assert module.process_instance is runner
    install()
    with patched():
        pass
    assert module.process_instance is not runner


def test_patched_block_that_raises_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block's own error leaves the module as it was."""
    runner = recording_runner()
    module = fake_mini_swe_agent(monkeypatch, "2.4.6", runner)
    with pytest.raises(ValueError, match="own"), patched():
        raise ValueError("own")
    assert module.process_instance is runner


@pytest.mark.parametrize("polite", [True, False])
def test_another_tools_wrapper_survives(polite: bool, router: RouterStub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removing the patch leaves a wrapper around it in place and inert; installing again works once."""
    runner = recording_runner()
    module = fake_mini_swe_agent(monkeypatch, "2.4.6", runner)
    install()
    ours = module.process_instance
    called: list[str] = []

    def theirs(*args: Any, **kwargs: Any) -> Any:
        called.append("theirs")
        return ours(*args, **kwargs)

    module.process_instance = functools.wraps(ours)(theirs) if polite else theirs  # type: ignore[attr-defined]
    run(module, router)
    uninstall()
    run(module, router)
    assert "extra_body" not in runner.seen[1]["config"]["model"]["model_kwargs"]
    install()
    run(module, router)
    uninstall()
    assert called == ["theirs"] * 3
    assert router.released_ids == [program_id_of(runner.seen[index]["config"]) for index in (0, 2)]
    assert module.process_instance is not runner


def test_reference_taken_before_the_patch_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that imported the function by name is named and left alone."""
    runner = recording_runner()
    fake_mini_swe_agent(monkeypatch, "2.4.6", runner)
    holder = ModuleType("their_runner")
    holder.work = runner  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_runner", holder)
    with pytest.warns(UnpatchedReferenceWarning, match=r"^their_runner\.work was imported .*wrap\(\)"):
        install()
    assert holder.work is runner


def test_wrapped_runner_announces_and_releases(router: RouterStub) -> None:
    """A runner with parameters of its own needs instance and config only."""

    def work(config: dict[str, Any], instance: dict[str, Any], *, retries: int = 0) -> tuple[Any, int]:
        """Solve one."""
        return config, retries

    wrapped = wrap(work, client_timeout_seconds=0)
    config, retries = wrapped(config_for(router), {"instance_id": "i"}, retries=2)
    assert retries == 2
    assert router.released_ids == [program_id_of(config)]
    assert "timeout" not in config["model"]["model_kwargs"]
    assert (wrapped.__name__, wrapped.__doc__) == ("work", "Solve one.")
    assert wrap(wrapped) is wrapped


def test_wrapped_runner_around_the_patched_one_makes_one_program(
    router: RouterStub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Layers of this package do not replace each other's id."""
    runner = recording_runner()
    module = fake_mini_swe_agent(monkeypatch, "2.4.6", runner)
    install()
    with caplog.at_level(logging.WARNING, "minisweagent_patch"):
        wrap(module.process_instance)({"instance_id": "i"}, "out", config_for(router), "pm")
    assert router.released_ids == [program_id_of(runner.seen[0]["config"])]
    assert caplog.messages == []


async def _coroutine(instance: Any, config: Any) -> None: ...


@pytest.mark.parametrize("runner", [_renamed, _coroutine, lambda: None])
def test_runner_that_cannot_be_wrapped_is_refused(runner: Callable[..., Any]) -> None:
    """The error says what is needed and names program() instead."""
    with pytest.raises(UnsupportedSignatureError, match=r"'instance' and 'config'.*program\(\)"):
        wrap(runner)


@pytest.mark.parametrize(
    ("instance", "prefix"),
    [({}, "swe-program-"), (None, "swe-program-"), (type("I", (), {"instance_id": "obj"})(), "swe-obj-")],
)
def test_instance_without_a_usable_id_still_runs(instance: Any, prefix: str, router: RouterStub) -> None:
    """What an instance is called only makes the id readable."""
    runner = recording_runner()
    wrap(runner)(instance, "out", config_for(router), "pm")
    assert program_id_of(runner.seen[0]["config"]).startswith(prefix)


def test_runner_called_without_config_runs_unannounced(caplog: pytest.LogCaptureFixture) -> None:
    """A default configuration cannot carry an id; the log says so."""

    def work(instance: Any, config: Any = None) -> str:
        return "ran"

    assert wrap(work)({"instance_id": "i"}) == "ran"
    assert len(caplog.messages) == 1
    assert "without a config" in caplog.messages[0]
