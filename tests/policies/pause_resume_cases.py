"""What the tests of ``pause-resume`` share: drivers with backends, things done to them, and questions to them."""

from __future__ import annotations

from policies.pause_resume import PauseResume
from thunderagent.core.commands import Forward, ProgramAdmitted, ProgramPaused, ProgramYielding
from thunderagent.core.events import BackendObserved, Prefix, TurnProgressed
from thunderagent.core.settings import SchedulerSettings
from thunderagent.policy import BackendId, PrefixKey, TurnId
from thunderagent.testing import SchedulerDriver
from thunderagent.testing.scheduler_driver import BYTES_PER_TOKEN

__all__ = [
    "SYSTEM_PROMPT",
    "A",
    "B",
    "C",
    "act",
    "admitted",
    "driver_of",
    "end",
    "forwarded",
    "gauge",
    "grow",
    "overfull",
    "paper",
    "park",
    "paused",
    "paused_on_a",
    "resize",
    "turn_of",
    "yielding",
]

A, B, C = BackendId("A"), BackendId("B"), BackendId("C")
SYSTEM_PROMPT = Prefix(PrefixKey("system"), 1_000 * BYTES_PER_TOKEN)
"""1,000 tokens that every program which names it begins with."""


def driver_of(*capacities: int, settings: SchedulerSettings | None = None, **options: str) -> SchedulerDriver:
    """Backends A, B, C of these capacities; no growth reserve unless asked for."""
    policy = PauseResume.from_options({"growth_reserve": "0", **options})
    driver = SchedulerDriver(policy, settings or SchedulerSettings())
    for name, capacity_tokens in zip("ABC", capacities, strict=False):
        driver.add(name, capacity_tokens)
    return driver


def paper(*capacities: int, settings: SchedulerSettings | None = None, **options: str) -> SchedulerDriver:
    """The same with ``preset=paper``."""
    return driver_of(*capacities, settings=settings, preset="paper", **options)


def resize(driver: SchedulerDriver, capacity_tokens: int, name: BackendId = A) -> None:
    """Another number of tokens is found."""
    driver.send(BackendObserved(name, None, capacity_tokens))


def gauge(
    driver: SchedulerDriver, kv_usage_ratio: float, name: BackendId = A, *, requests_waiting: int | None = None
) -> None:
    """The engine says how much of its cache its running requests use, and how many others wait in it."""
    driver.send(BackendObserved(name, kv_usage_ratio=kv_usage_ratio, requests_waiting=requests_waiting))


def act(driver: SchedulerDriver, *programs: tuple[str, int]) -> None:
    """Each takes a turn of so many tokens, and acts from then on."""
    for program, tokens in programs:
        driver.finish(driver.arrive(program, tokens))


def turn_of(driver: SchedulerDriver, program: str) -> TurnId:
    """The first running turn of the program."""
    return min(turn for turn, event in driver.running.items() if event.program == program)


def grow(driver: SchedulerDriver, program: str, output_tokens: int) -> None:
    """The program's running turn has put out so many tokens by now."""
    driver.send(TurnProgressed(turn_of(driver, program), output_tokens))


def end(driver: SchedulerDriver, program: str) -> None:
    """The program's running turn ends, and the program with it."""
    driver.finish(turn_of(driver, program))
    driver.release(program)


def admitted(driver: SchedulerDriver) -> list[tuple[str, str]]:
    """Program and backend of each admission so far."""
    return [(notice.program, notice.backend) for notice in driver.told(ProgramAdmitted)]


def forwarded(driver: SchedulerDriver) -> list[TurnId]:
    """Turns in the order in which they were forwarded."""
    return [command.turn for command in driver.told(Forward)]


def paused(driver: SchedulerDriver) -> list[str]:
    """Programs paused so far."""
    return [notice.program for notice in driver.told(ProgramPaused)]


def yielding(driver: SchedulerDriver) -> list[str]:
    """Programs that were told to leave at their turn boundary so far."""
    return [notice.program for notice in driver.told(ProgramYielding)]


def overfull(**options: str) -> SchedulerDriver:
    """Acting: s1 1,500 and s2 3,000; reasoning: r1 2,000 and r2 5,000; 11,500 with 100 of headroom each, on 6,000."""
    driver = driver_of(20_000, **options)
    act(driver, ("s2", 3_000), ("s1", 1_500))
    driver.arrive("r2", 5_000)
    driver.arrive("r1", 2_000)
    resize(driver, 6_000)
    return driver


def park(driver: SchedulerDriver, *programs: tuple[str, int]) -> None:
    """Pause these after a turn: z of 5,000 stays on A when the cache shrinks, and has no room beside it."""
    driver.arrive("z", 5_000)
    act(driver, *programs)
    resize(driver, 600)
    driver.advance(5.0)
    resize(driver, 5_200)
    assert set(paused(driver)) == {program for program, _ in programs}


def paused_on_a(**options: str) -> SchedulerDriver:
    """p of 2,000 was paused on A, of 10,000, where z of 1,000 runs on; B, of 50,000, came later and is empty."""
    driver = driver_of(10_000, **options)
    act(driver, ("p", 2_000))
    driver.arrive("z", 1_000)
    resize(driver, 1_050)
    resize(driver, 10_000)
    driver.add("B", 50_000)
    assert (paused(driver), driver.accounted()) == (["p"], {"A": 1_000, "B": 0})
    return driver
