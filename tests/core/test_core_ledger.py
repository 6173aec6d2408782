"""Who is charged what: shared prefixes, overlapping turns, branches, guests, and every way out of a turn."""

from __future__ import annotations

import random

import pytest
from core_policies import Scripted

from thunderagent.core.events import Prefix, TurnProgressed
from thunderagent.core.usage import Outcome
from thunderagent.policy import AdmitTurn, BackendId, Move, PrefixKey, ProgramId
from thunderagent.testing.scheduler_driver import BYTES_PER_TOKEN, SchedulerDriver

SYSTEM = Prefix(PrefixKey("system"), 300 * BYTES_PER_TOKEN)
TASK = Prefix(PrefixKey("task"), 200 * BYTES_PER_TOKEN)


def move(driver: SchedulerDriver, policy: Scripted, program: str, backend: str) -> None:
    """Have the policy move a program now."""
    policy.decisions = [Move(ProgramId(program), BackendId(backend))]
    driver.abandon(driver.arrive(None, 1))


def test_shared_prefix_of_two_programs_counts_once(driver: SchedulerDriver) -> None:
    """Two prompts of 1,000 on the same 300 take 1,700; the prefix goes with the last of them."""
    driver.arrive("p", 1000, prefixes=[SYSTEM])
    driver.arrive("q", 1000, prefixes=[SYSTEM])
    assert driver.accounted() == {"A": 1700, "B": 0}
    assert driver.backend("A").shared_tokens == 300
    driver.close()


def test_prefix_of_one_program_is_its_own_until_another_shares_it(driver: SchedulerDriver) -> None:
    """Own tokens say what would be free if the program went: all of it while it is alone, the rest when it is not."""
    driver.arrive("p", 1000, prefixes=[SYSTEM])
    assert (driver.program("p").own_tokens, driver.backend("A").shared_tokens) == (1000, 0)
    driver.arrive("q", 900, prefixes=[SYSTEM])
    owned = {name: driver.program(name).own_tokens for name in ("p", "q")}
    assert (owned, driver.backend("A").shared_tokens) == ({"p": 700, "q": 600}, 300)
    driver.release("p")
    driver.close()


def test_shared_prefix_stays_until_its_last_program_is_released(driver: SchedulerDriver) -> None:
    """One of two programs that goes takes its own tokens only."""
    for program in ("p", "q"):
        driver.finish(driver.arrive(program, 1000, prefixes=[SYSTEM, TASK]))
    assert driver.accounted()["A"] == 1500
    driver.release("p")
    assert driver.accounted()["A"] == 1000
    driver.release("q")
    driver.check_empty()


def test_prefix_longer_than_the_prompt_is_not_charged(driver: SchedulerDriver) -> None:
    """What is charged never exceeds what is needed; a later prefix does not stand without the former."""
    driver.arrive("p", 250, prefixes=[SYSTEM, TASK])
    assert driver.accounted()["A"] == 250
    assert driver.backend("A").shared_tokens == 0


def test_shared_prefix_counts_on_each_backend(driver: SchedulerDriver, policy: Scripted) -> None:
    """Each cache holds its own copy."""
    driver.arrive("p", 1000, prefixes=[SYSTEM])
    policy.answer = lambda turn, cluster: "B"
    driver.arrive("q", 1000, prefixes=[SYSTEM])
    assert driver.accounted() == {"A": 1000, "B": 1000}


def test_overlapping_turns_of_a_branch_count_the_longest_prompt_and_every_output(driver: SchedulerDriver) -> None:
    """They continue one conversation: 1,200 of prompt, 50 and 30 of output."""
    first, second = driver.arrive("p", 1000), driver.arrive("p", 1200)
    driver.send(TurnProgressed(first, 50))
    driver.send(TurnProgressed(second, 30))
    assert driver.accounted()["A"] == 1280
    driver.finish(second, 1200, 40)
    assert driver.accounted()["A"] == 1240
    driver.finish(first, 1000, 60)
    assert driver.accounted()["A"] == 1060


def test_progress_that_goes_back_changes_nothing(driver: SchedulerDriver) -> None:
    """Counts of output only grow."""
    turn = driver.arrive("p", 100)
    driver.send(TurnProgressed(turn, 50))
    driver.send(TurnProgressed(turn, 20))
    assert driver.accounted()["A"] == 150


def test_two_branches_add_up(driver: SchedulerDriver) -> None:
    """A sub-agent's conversation is held beside the main one."""
    driver.finish(driver.arrive("p", 1000), 1000, 0)
    driver.arrive("p", 500, branch="sub")
    assert driver.accounted()["A"] == 1500
    assert driver.program("p").need_tokens == 1500


def test_turn_from_before_a_move_ends_as_a_guest(driver: SchedulerDriver, policy: Scripted) -> None:
    """It is charged where it runs; its history then counts at the new place."""
    turn = driver.arrive("p", 1000)
    move(driver, policy, "p", "B")
    assert driver.backend("A").guest_tokens == 1000
    assert driver.accounted() == {"A": 1000, "B": 0}
    driver.finish(turn, 1000, 100)
    assert driver.accounted() == {"A": 0, "B": 1100}
    driver.close()


def test_program_moved_back_owns_its_guests_again(driver: SchedulerDriver, policy: Scripted) -> None:
    """Nothing is charged twice when the place returns to where a turn still runs."""
    driver.arrive("p", 1000)
    move(driver, policy, "p", "B")
    move(driver, policy, "p", "A")
    assert (driver.backend("A").guest_tokens, driver.program("p").own_tokens) == (0, 1000)
    driver.close()


def test_release_while_a_turn_runs_frees_the_rest_at_once(driver: SchedulerDriver) -> None:
    """The history goes, the running turn is charged until its end, and then nothing is left."""
    driver.finish(driver.arrive("p", 2000), 2000, 0)
    turn = driver.arrive("p", 500, branch="sub")
    assert driver.accounted()["A"] == 2500
    driver.release("p")
    assert driver.accounted()["A"] == 500
    driver.finish(turn, 500, 20)
    driver.check_empty()


def test_one_off_turn_is_charged_while_it_runs(driver: SchedulerDriver) -> None:
    """Without an id nothing is kept."""
    turn = driver.arrive(None, 700, prefixes=[SYSTEM])
    assert (driver.backend("A").guest_tokens, driver.backend("A").shared_tokens) == (700, 0)
    driver.finish(turn, 700, 5)
    driver.check_empty()


@pytest.mark.parametrize("outcome", list(Outcome))
@pytest.mark.parametrize("prompt", [None, 120])
def test_every_end_of_a_turn_gives_back_what_it_took(
    driver: SchedulerDriver, outcome: Outcome, prompt: int | None
) -> None:
    """Whatever the outcome, a release after it leaves nothing."""
    driver.finish(driver.arrive("p", 100, prefixes=[SYSTEM]), prompt, 10, outcome=outcome, output_tokens=3)
    driver.release("p")
    driver.check_empty()


def test_forgotten_turn_is_not_finished_twice(driver: SchedulerDriver) -> None:
    """Ten turns that end in any way leave the totals at zero, not below."""
    for index in range(10):
        turn = driver.arrive("p", 100 + index)
        if index % 2:
            driver.abandon(turn)
        else:
            driver.finish(turn)
    driver.release("p")
    driver.check_empty()


@pytest.mark.parametrize("seed", range(5))
def test_added_tokens_is_what_the_account_grows_by(seed: int) -> None:
    """What a policy is told before a turn is forwarded is what the backend counts after it."""
    draw = random.Random(seed)
    seen: dict[int, tuple[str, int, int]] = {}

    def answer(turn, cluster):
        backend = draw.choice(turn.eligible_backends) if turn.place is None else turn.place
        seen[turn.id] = (backend.id, backend.accounted_tokens, cluster.added_tokens(turn, backend))
        return backend.id

    driver = SchedulerDriver(Scripted(answer, reconsiders=False))
    for name in "AB":
        driver.add(name, 100_000)
    for _ in range(60):
        program, branch = draw.choice([None, "p", "q", "r"]), draw.choice(["main", "sub"])
        prefixes = draw.choice([[], [SYSTEM], [SYSTEM, TASK]])
        turn = driver.arrive(program, draw.randint(600, 3000), branch=branch, prefixes=prefixes)
        backend, before, added = seen[turn]
        assert driver.accounted()[backend] == before + added
        if draw.random() < 0.7:
            driver.finish(draw.choice(sorted(driver.running)), draw.choice([None, 2000]), 100)
        if draw.random() < 0.1:
            driver.release("q")
    driver.close()


def test_beginning_that_is_named_twice_counts_once(driver: SchedulerDriver) -> None:
    """Its tokens are taken once and given back once."""
    for program in ("p", "q"):
        driver.arrive(program, 1_000, prefixes=[SYSTEM, SYSTEM, TASK, SYSTEM])
    assert driver.accounted() == {"A": 1_500, "B": 0}
    driver.close()


def test_turn_alone_demands_what_it_adds_whatever_else_of_its_conversation_runs(
    driver: SchedulerDriver, policy: Scripted
) -> None:
    """Its longer sibling's prompt counts where that runs, and its output with that one's nowhere."""
    driver.add("H", 10_000, ["m"])
    policy.answer = lambda turn, cluster: "H" if turn.model == "m" else "B"
    driver.arrive("p", 100, model="m")
    policy.answer = lambda turn, cluster: "B"
    siblings = [driver.arrive("p", tokens, branch="sub", model="n", prefixes=[SYSTEM]) for tokens in (1_000, 400)]
    assert [driver.where[turn] for turn in siblings] == ["B", "B"]
    driver.send(TurnProgressed(siblings[0], 50))
    policy.answer, policy.reconsiders = (lambda turn, cluster: None), False
    cluster = driver.cluster
    for tokens, on_a, on_b in ((700, 700, 0), (1_300, 1_300, 300)):
        turn = cluster.turn_by_id[driver.arrive("p", tokens, branch="sub", model="n")]
        assert turn.waits_alone
        for name, added_tokens in (("A", on_a), ("B", on_b)):
            backend = driver.backend(name)
            assert cluster.added_tokens(turn, backend) == added_tokens
            assert cluster.demand(turn).added_tokens(backend) == added_tokens
        before = driver.accounted()["B"]
        policy.decisions = [AdmitTurn(turn.id, BackendId("B"))]
        driver.abandon(driver.arrive(None, 1))
        assert driver.accounted()["B"] - before == on_b
        driver.finish(turn.id, outcome=Outcome.BACKEND_ERROR)
    driver.close()
