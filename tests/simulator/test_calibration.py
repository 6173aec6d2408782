"""Fitting step times to measurements, and measuring an emulated engine whose times are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from daemons import command, engine

from thunderagent.calibration import CalibrationError, Sample, Sizes, fit, predicted_seconds
from thunderagent.cli import main
from thunderagent.emulator.preset_file import read_preset
from thunderagent.emulator.timing import CPU_TINY, PRESETS, TimingModel

WORK = [Sample(1.0, 1, tokens, tokens * tokens // 2) for tokens in (100, 1_000, 10_000)]
WORK += [Sample(1.0, 1, 0, 0, count, count * size) for count in (1, 4, 16) for size in (100, 5_000)]


def calibrated(capsys: pytest.CaptureFixture[str], output: str) -> tuple[int, str, str]:
    """Exit status and what was written, of a server that nobody asks."""
    with pytest.raises(SystemExit) as raised:
        main(["calibrate", "--backend", "http://127.0.0.1:9", "--output", output])
    told = capsys.readouterr()
    return int(raised.value.code or 0), told.out, told.err


def timed(timing: TimingModel) -> list[Sample]:
    """What a machine of that timing would have taken."""
    return [Sample(predicted_seconds(timing, work), *work.work) for work in WORK]


@pytest.mark.parametrize("name", PRESETS)
def test_timing_is_found_again(name: str) -> None:
    """From times without noise, exactly."""
    timing = PRESETS[name].timing
    found = fit(timed(timing))
    for sample in WORK:
        assert predicted_seconds(found, sample) == pytest.approx(predicted_seconds(timing, sample), rel=1e-6)


def test_no_part_is_negative() -> None:
    """Noise must not make tokens that give time back."""
    noisy = [Sample(sample.seconds * (0.8 if sample.kv_tokens else 1.0), *sample.work) for sample in timed(
        TimingModel(0.01, 1e-4, 0.0, 0.0, 0.0)
    )]  # fmt: skip
    found = fit(noisy)
    assert min(found.prefill_pair_seconds, found.decode_sequence_seconds, found.kv_token_seconds) >= 0.0
    assert found.prefill_token_seconds == pytest.approx(1e-4, rel=0.3)


def test_times_that_do_not_grow_are_refused() -> None:
    """Nothing can be said of a server that takes a second for everything, or of which one size is known."""
    with pytest.raises(CalibrationError, match="do not grow"):
        fit([Sample(1.0, *sample.work) for sample in WORK])
    with pytest.raises(CalibrationError, match="too few sizes"):
        fit(WORK[:1])


@pytest.mark.parametrize(("longest", "kv_tokens"), [(8192, 16_384), (32_768, 65_536), (131_072, 2_000_000)])
def test_sizes_fit_the_server(longest: int, kv_tokens: int) -> None:
    """Neither its context nor its cache is passed."""
    sizes = Sizes.of(longest, kv_tokens, 2048)
    assert max(sizes.prompts) < longest
    assert all(context + sizes.output_tokens < longest for _, context in sizes.batches)
    assert all(count * (context + sizes.output_tokens) <= kv_tokens for count, context in sizes.batches)
    assert len({count for count, _ in sizes.batches}) > 2
    assert len({context for _, context in sizes.batches}) > 1


def test_server_with_short_contexts_cannot_be_measured() -> None:
    """Told so, before anything is sent."""
    with pytest.raises(CalibrationError, match="too short"):
        Sizes.of(100, 16_384, 2048)


def test_emulated_engine_is_measured_as_it_is(tmp_path: Path) -> None:
    """The preset that comes out predicts what the engine's own says, at twice its
    speed within a fifth on a busy machine."""
    path = tmp_path / "preset.json"
    daemon = engine("--preset", "cpu-tiny", "--kv-tokens", str(CPU_TINY.kv_tokens), "--speed", "2").wait_ready()
    try:
        arguments = ("--backend", daemon.url, "--max-num-batched-tokens", "2048", "--output", str(path))
        done = command("calibrate", *arguments, timeout=100)
    finally:
        daemon.kill()
    assert done.returncode == 0, done.stderr
    preset = read_preset(path)
    assert (preset.kv_tokens, preset.max_model_len) == (CPU_TINY.kv_tokens, CPU_TINY.max_model_len)
    found, timing = preset.timing, CPU_TINY.timing
    assert 2 * found.prompt_seconds(4096, 2048) == pytest.approx(timing.prompt_seconds(4096, 2048), rel=0.2)
    assert 2 * found.decode_seconds(8, 500) == pytest.approx(timing.decode_seconds(8, 500), rel=0.2)
    assert "fitted" in done.stdout
    assert json.loads(path.read_text())["title"] == "simulated, calibrated to a server of emulated"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--backend", "http://127.0.0.1:9"), "http://127.0.0.1:9 could not be asked: Connection refused\n"),
        (("--backend", "http://127.0.0.1:9x"), "backend URL has a bad port: 'http://127.0.0.1:9x'\n"),
        (("--backend", "nonsense"), "backend URL must begin with http:// or https://: 'nonsense'\n"),
    ],
)
def test_server_that_is_not_there(tmp_path: Path, arguments: tuple[str, ...], text: str) -> None:
    """One line, status 2, no file."""
    path = tmp_path / "preset.json"
    done = command("calibrate", *arguments, "--output", str(path))
    assert (done.returncode, text in done.stderr, done.stderr.count("\n"), path.exists()) == (2, True, 1, False)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("none/at.json", "No such file or directory"),
        ("file/at.json", "Not a directory"),
        (".", "Is a directory"),
        ("preset.yaml", "the file's name must end in .json"),
        (300 * "a" + ".json", "File name too long"),
    ],
)
def test_output_that_cannot_be_written_is_told_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    output: str,
    reason: str,
) -> None:
    """A minute's work would be lost."""
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("thunderagent.cli.calibrate._look", None)
    assert calibrated(capsys, output) == (2, "", f"thunderagent calibrate: --output {output}: {reason}\n")


def test_output_in_a_folder_without_permission_is_told_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Who runs as root may write anywhere: the system's answer is set here."""
    monkeypatch.setattr("os.access", lambda path, _: path != tmp_path)
    monkeypatch.setattr("thunderagent.cli.calibrate._look", None)
    path = tmp_path / "at.json"
    assert calibrated(capsys, str(path)) == (2, "", f"thunderagent calibrate: --output {path}: Permission denied\n")


def test_what_was_measured_is_told_where_its_file_cannot_be_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The disk may have filled up meanwhile."""
    path = tmp_path / "at.json"

    async def look(*_: object) -> tuple[str, int, int]:
        return "emulated", 8192, 16_384

    async def measured(*_: object) -> list[Sample]:
        path.mkdir()
        return timed(CPU_TINY.timing)

    monkeypatch.setattr("thunderagent.cli.calibrate._look", look)
    monkeypatch.setattr("thunderagent.cli.calibrate.measure", measured)
    status, out, err = calibrated(capsys, str(path))
    assert (status, err) == (2, f"thunderagent calibrate: --output {path}: Is a directory\n")
    assert (out.count("fitted"), "written" in out) == (len(WORK), False)


@pytest.mark.parametrize("fault", ["cut:after_chunks=3", "refuse"])
def test_server_that_goes_away_during_the_measurement_is_told(tmp_path: Path, fault: str) -> None:
    """One line, status 2, no file."""
    path = tmp_path / "preset.json"
    daemon = engine("--preset", "cpu-tiny", "--fault", fault).wait_ready()
    try:
        done = command("calibrate", "--backend", daemon.url, "--output", str(path), timeout=100)
    finally:
        daemon.kill()
    gone = f"{daemon.url} went away during the measurement (it closed the connection): start it and calibrate again"
    assert (done.returncode, done.stderr) == (2, f"thunderagent calibrate: {gone}\n")
    assert not path.exists()
