"""``pause-resume``: how its options are read, and that at the hold limit."""

from __future__ import annotations

import attrs
import pytest
from pause_resume_cases import A, driver_of

from policies.pause_resume import PRESETS, PauseResume, Settings
from thunderagent.core.commands import ProgramForced, Refuse, RefuseCode
from thunderagent.core.settings import OnHoldLimit, SchedulerSettings
from thunderagent.policy import OptionError, ProgramId


def test_no_options_are_the_default_preset() -> None:
    """And ``preset=default`` says so."""
    assert PauseResume.from_options({}).settings == Settings() == PRESETS["default"]
    assert PauseResume.from_options({"preset": "default"}).settings == Settings()


def test_single_options_go_on_top_of_the_preset() -> None:
    """The published algorithm every second, with decay."""
    options = {"preset": "paper", "tick_seconds": "1", "resume_decay": "on", "pause_decay": "yes"}
    policy = PauseResume.from_options(options)
    assert policy.tick_seconds == 1.0
    assert policy.settings == attrs.evolve(PRESETS["paper"], tick_seconds=1.0, resume_decay=True, pause_decay=True)


def test_each_option_is_read_as_its_kind() -> None:
    """Words, whole numbers, numbers and switches; every option but those of words has another value than its
    default."""
    options = {
        "tick_seconds": "2.5",
        "react": "0",
        "resume_order": "first-come",
        "wait_weight": "0.5",
        "ageing_seconds": "60",
        "resume_on": "resident",
        "resident_ratio": "0.25",
        "move_after_seconds": "20",
        "low_watermark": "0.7",
        "growth_reserve": "0",
        "guest_ratio": "0.2",
        "pace_prefills": "on",
        "forced_resume": "yes",
        "buffer_tokens": "512",
        "acting_weight": "0.5",
        "shared_correction": "none",
        "half_life_seconds": "3",
        "resume_decay": "TRUE",
        "pause_decay": "1",
        "high_watermark": "0.9",
        "pause_order": "largest",
        "idle_lease_seconds": "0",
        "learned_lease": "true",
        "rotation_ratio": "0.1",
        "quantum_turns": "2",
        "quantum_seconds": "1.5",
        "turns_per_program": "4",
    }
    expected = Settings(
        tick_seconds=2.5,
        react=False,
        resume_order="first-come",
        wait_weight=0.5,
        ageing_seconds=60.0,
        resume_on="resident",
        resident_ratio=0.25,
        move_after_seconds=20.0,
        low_watermark=0.7,
        growth_reserve=0.0,
        guest_ratio=0.2,
        pace_prefills=True,
        forced_resume=True,
        buffer_tokens=512,
        acting_weight=0.5,
        shared_correction="none",
        half_life_seconds=3.0,
        resume_decay=True,
        pause_decay=True,
        high_watermark=0.9,
        pause_order="largest",
        learned_lease=True,
        idle_lease_seconds=0.0,
        rotation_ratio=0.1,
        quantum_turns=2,
        quantum_seconds=1.5,
        turns_per_program=4,
    )
    assert PauseResume.from_options(options).settings == expected
    assert set(options) == set(attrs.asdict(Settings()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "fast"}, "option preset must be one of default, paper, got 'fast'"),
        (
            {"resume_order": "random"},
            "option resume_order must be oldest or first-come or smallest or published, got 'random'",
        ),
        (
            {"resume_on": "moon"},
            "option resume_on must be prefer-origin or origin or resident or roomiest or tightest, got 'moon'",
        ),
        ({"pause_order": "random"}, "option pause_order must be smallest or largest or last-come, got 'random'"),
        ({"shared_correction": "yes"}, "option shared_correction must be none or prefixes or usage, got 'yes'"),
        ({"tick_seconds": "0"}, "option tick_seconds must be above 0, got '0'"),
        ({"tick_seconds": "soon"}, "option tick_seconds must be a number, got 'soon'"),
        ({"tick_seconds": "nan"}, "option tick_seconds must be a finite number of at least 0, got 'nan'"),
        ({"half_life_seconds": "0"}, "option half_life_seconds must be above 0, got '0'"),
        ({"high_watermark": "inf"}, "option high_watermark must be a finite number of at least 0, got 'inf'"),
        ({"resident_ratio": "50"}, "option resident_ratio must be at most 1, got '50'"),
        ({"low_watermark": "90"}, "option low_watermark must be at most 1, got '90'"),
        ({"high_watermark": "95"}, "option high_watermark must be at most 1, got '95'"),
        (
            {"high_watermark": "0"},
            "option growth_reserve must be below high_watermark, or nobody fits beside others: 0.1, and 0",
        ),
        ({"growth_reserve": "5"}, "option growth_reserve must be below 1, got '5'"),
        (
            {"growth_reserve": "0.5", "high_watermark": "0.5"},
            "option growth_reserve must be below high_watermark, or nobody fits beside others: 0.5, and 0.5",
        ),
        ({"buffer_tokens": "1.5"}, "option buffer_tokens must be a whole number, got '1.5'"),
        ({"buffer_tokens": "-1"}, "option buffer_tokens must be a finite number of at least 0, got '-1'"),
        ({"quantum_turns": "two"}, "option quantum_turns must be a whole number, got 'two'"),
        ({"react": "often"}, "option react must be true or false, got 'often'"),
    ],
)
def test_unusable_option_is_refused_in_words(options: dict[str, str], message: str) -> None:
    """The policy, the option, what it takes, and what it got."""
    with pytest.raises(OptionError) as caught:
        PauseResume.from_options(options)
    assert str(caught.value) == f"policy 'pause-resume': {message}"


@pytest.mark.parametrize("name", ["tick", "order"])
def test_unknown_option_is_refused_with_the_known_ones(name: str) -> None:
    """A typo does not pass in silence, nor a name of former days."""
    with pytest.raises(OptionError) as caught:
        PauseResume.from_options({name: "5"})
    known = ", ".join(sorted([*attrs.asdict(Settings()), "preset"]))
    assert str(caught.value) == f"policy 'pause-resume' has no option {name!r}; it has: {known}"


@pytest.mark.parametrize(
    ("name", "text", "idle_text"),
    [
        ("resume_on", "origin", "roomiest"),
        ("resident_ratio", "0.7", "0.5"),
        ("move_after_seconds", "20", "0"),
        ("ageing_seconds", "60", "0"),
        ("quantum_turns", "2", "0"),
        ("quantum_seconds", "30", "0.0"),
    ],
)
def test_option_that_the_published_order_has_no_use_for_is_refused(name: str, text: str, idle_text: str) -> None:
    """Rather than ignored: with the preset, and with the order alone. In another order, or where it says to do
    nothing, it passes."""
    for options in ({"preset": "paper"}, {"resume_order": "published"}):
        with pytest.raises(OptionError) as caught:
            PauseResume.from_options({**options, name: text})
        assert str(caught.value) == (
            f"policy 'pause-resume': option {name}={text} does nothing with resume_order=published: leave it out, "
            "or set resume_order to oldest, first-come or smallest"
        )
        PauseResume.from_options({**options, name: idle_text})
    PauseResume.from_options({"preset": "paper", name: text, "resume_order": "smallest"})


def test_published_order_resumes_on_the_roomiest() -> None:
    """Also where the preset says otherwise."""
    assert PauseResume.from_options({"resume_order": "published"}).settings == Settings(
        resume_order="published", resume_on="roomiest", guest_ratio=0.0
    )


# The hold limit


@pytest.mark.parametrize(
    ("forced_resume", "on_hold_limit", "forced"),
    [
        ("true", None, True),
        ("false", None, False),
        ("true", OnHoldLimit.HEAD, False),
        ("true", OnHoldLimit.REFUSE, False),
        ("false", OnHoldLimit.FORCE, True),
    ],
)
def test_forced_resume_counts_unless_the_operator_says_otherwise(
    forced_resume: str, on_hold_limit: OnHoldLimit | None, forced: bool
) -> None:
    """q of 5,000 does not fit beside p of 8,000 on 10,000; after 60 s it is forced in, p makes room at its next
    boundary, or q is refused."""
    limits = SchedulerSettings(max_hold_seconds=60.0, on_hold_limit=on_hold_limit)
    driver = driver_of(10_000, settings=limits, forced_resume=forced_resume)
    first = driver.arrive("p", 8_000)
    turn = driver.arrive("q", 5_000)
    driver.advance(59.9)
    assert turn in driver.held
    driver.advance(0.1)
    assert driver.told(ProgramForced) == ([ProgramForced(ProgramId("q"), A)] if forced else [])
    assert (turn in driver.running) is forced
    refused = [RefuseCode.HOLD_LIMIT] if on_hold_limit is OnHoldLimit.REFUSE else []
    assert [refusal.code for refusal in driver.told(Refuse)] == refused
    driver.finish(first)
    assert (turn in driver.running) is (not refused)


def test_lease_that_is_set_is_not_learned() -> None:
    """Unless both are asked for."""
    assert PauseResume.from_options({}).settings.learned_lease
    assert not PauseResume.from_options({"idle_lease_seconds": "10"}).settings.learned_lease
    assert PauseResume.from_options({"idle_lease_seconds": "10", "learned_lease": "true"}).settings.learned_lease
