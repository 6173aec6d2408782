"""Presets against the figures that they claim."""

from __future__ import annotations

import pytest

from thunderagent.emulator.timing import DEFAULT_PRESET, PRESETS, TimingModel, attention_pairs


@pytest.mark.parametrize(("contexts", "milliseconds"), [(4, 10), (12, 22), (16, 31)])
def test_h100_decoding_matches_published_figures(contexts: int, milliseconds: float) -> None:
    """Time between tokens with contexts of 80k tokens, within 6 %."""
    timing = PRESETS["h100-qwen3-coder-30b"].timing
    assert timing.decode_seconds(contexts, 80_000) * 1000 == pytest.approx(milliseconds, rel=0.06)


def test_h100_prefill_matches_published_figures() -> None:
    """About 22,000 tokens/s over a 60k prompt, in a cache of 2,237,040 tokens."""
    preset = PRESETS["h100-qwen3-coder-30b"]
    seconds = preset.timing.prompt_seconds(60_000, preset.max_num_batched_tokens)
    assert 60_000 / seconds == pytest.approx(22_000, rel=0.01)
    assert preset.kv_tokens == 2_237_040


@pytest.mark.parametrize(
    ("batch", "context_tokens", "milliseconds"),
    [
        (1, 96, 10.02),
        (4, 96, 12.56),
        (8, 96, 15.02),
        (16, 96, 21.81),
        (1, 1056, 11.13),
        (4, 1056, 13.68),
        (8, 1056, 17.45),
    ],
)
def test_cpu_decoding_matches_measured_figures(batch: int, context_tokens: int, milliseconds: float) -> None:
    """Time between tokens of the tiny model on two cores, within 6 %."""
    seconds = PRESETS["cpu-tiny"].timing.decode_seconds(batch, context_tokens)
    assert 1000 * seconds == pytest.approx(milliseconds, rel=0.06)


@pytest.mark.parametrize(("tokens", "milliseconds"), [(256, 99.83), (1024, 465.77), (4096, 3172.85)])
def test_cpu_prefill_matches_measured_figures(tokens: int, milliseconds: float) -> None:
    """Prompts alone on the engine, within 2 %."""
    preset = PRESETS["cpu-tiny"]
    seconds = preset.timing.prompt_seconds(tokens, preset.max_num_batched_tokens)
    assert 1000 * seconds == pytest.approx(milliseconds, rel=0.02)


def test_every_preset_says_that_it_is_simulated() -> None:
    """No preset can be mistaken for a measurement of the machine."""
    assert {preset.title.split(",")[0] for preset in PRESETS.values()} == {"simulated"}
    assert all(name == preset.name for name, preset in PRESETS.items())
    assert DEFAULT_PRESET in PRESETS.values()


def test_duration_adds_up_the_work() -> None:
    """Each kind of work costs its own coefficient."""
    timing = TimingModel(1.0, 0.1, 0.001, 0.5, 0.01)
    assert timing.duration_seconds(10, 100, 4, 200) == pytest.approx(1 + 1 + 0.1 + 2 + 2)


def test_cached_prompt_costs_its_rest() -> None:
    """Only the tokens after the cached ones are prefilled."""
    timing = TimingModel(1.0, 0.1, 0.0, 0.0, 0.0)
    assert timing.prompt_seconds(100, 50, cached_tokens=90) == pytest.approx(1 + 1)


def test_attention_pairs_of_chunks_add_up() -> None:
    """Splitting a prompt into chunks does not change the pairs."""
    assert attention_pairs(60, 0) + attention_pairs(40, 60) == attention_pairs(100, 0)
