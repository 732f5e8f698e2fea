"""Handlers that take their process down: it is started again, and each time fewer records are suspected, until one is alone.

How often it may die is asserted. A crash leaves no name, so with 4 handlers at once it is found in 1 death that nobody was prepared for, one
with a group of 16, one each with 8, 4, 2 and 1, and 2 more tries follow: 8. A handler that does not end is named by its own process: 3 tries, 3
deaths. What a batch had in hand is halved as a group is.
"""

from __future__ import annotations

import math
import random
import signal
from pathlib import Path

import pytest
from tests.processes.killers import Job
from tests.processes.scene import NeverSettles, Scene

from everlog.store import Cause

TRIES = 3
"""So often a record may take a process down, once it was alone."""
KILLED = -signal.SIGKILL


def most_deaths(at_once: int) -> int:
    """Return how often a crash may happen until its key is parked."""
    return 1 + 1 + math.ceil(math.log2(at_once)) + (TRIES - 1)


def with_killer(does: str, key: str = "bad") -> list[Job]:
    """Return events of many keys, one that kills between two others of its key, and some behind it."""
    before = [Job(f"k{number}", n) for n in range(4) for number in range(12)]
    behind = [Job(f"k{number}", n) for n in range(4, 7) for number in range(3)]
    return [*before, Job(key, 0), Job(key, 1, does), *behind, Job(key, 2), Job(key, 3)]


async def assert_parked(scene: Scene, *keys: str, cause: Cause = Cause.KILLED, handler: str = "handle") -> None:
    """Nothing but these keys is held, for this cause, and everything else was done once; mended, they go on in order."""
    parked = {one.key: one for one in await scene.store.parked()}
    assert sorted(parked) == sorted(keys)
    for one in parked.values():
        assert one.first.cause is cause
        assert one.first.attempts == TRIES
        assert handler in one.first.error
        assert one.first.next_attempt_us is None
        assert {held.cause for held in (await scene.held(one.key))[1:]} <= {Cause.BEHIND}
    assert await scene.faults() == []
    await scene.mend()
    assert await scene.store.parked() == []
    assert await scene.faults() == []


# ---- crashes ----


@pytest.mark.parametrize("does", ["exit", "segv", "oom", "later"])
async def test_the_key_of_a_handler_that_crashes_is_parked_and_the_others_go_on(tmp_path: Path, does: str) -> None:
    async with Scene(tmp_path) as scene:
        await scene.publish(*with_killer(does))
        deaths = await scene.run(most_deaths=most_deaths(16))
        assert len(deaths) >= TRIES
        await assert_parked(scene, "bad")


async def test_a_killer_with_nothing_else_in_the_log_is_found(tmp_path: Path) -> None:
    async with Scene(tmp_path) as scene:
        await scene.publish(Job("bad", 0, "exit"))
        assert await scene.run(most_deaths=most_deaths(1)) == [9] * 4
        await scene.publish(Job("bad", 1), Job("good", 0))
        assert await scene.run(most_deaths=0) == []
        assert await scene.handled() == {"good": [0]}
        await assert_parked(scene, "bad")


async def test_a_held_record_that_kills_when_it_is_tried_again_is_found_at_once(tmp_path: Path) -> None:
    async with Scene(tmp_path) as scene:
        await scene.publish(*with_killer("once"))
        # It has failed, kills, kills as the one that is tried, and once more.
        assert await scene.run(most_deaths=3) == [9, 9, 9]
        await assert_parked(scene, "bad")


async def test_killers_of_several_keys_and_slots_are_found_one_after_another(tmp_path: Path) -> None:
    async with Scene(tmp_path) as scene:
        await scene.publish(*with_killer("exit"), *with_killer("later", "worse"), *with_killer("exit", "worst"))
        await scene.run(most_deaths=3 * most_deaths(16))
        await assert_parked(scene, "bad", "worse", "worst")


async def test_two_workers_that_die_of_the_same_event_find_it(tmp_path: Path) -> None:
    async with Scene(tmp_path) as scene:
        await scene.publish(*with_killer("later"))
        await scene.run(workers=2, most_deaths=2 * most_deaths(16))
        await assert_parked(scene, "bad")


async def test_a_plain_handler_that_crashes_in_its_thread_is_found(tmp_path: Path) -> None:
    async with Scene(tmp_path, kind="plain") as scene:
        await scene.publish(*with_killer("exit"))
        await scene.run(most_deaths=most_deaths(16))
        await assert_parked(scene, "bad")


async def test_a_batch_is_halved_until_the_event_that_kills_is_alone(tmp_path: Path) -> None:
    async with Scene(tmp_path, kind="batch") as scene:
        await scene.publish(*[Job("bad" if n == 500 else f"k{n % 50}", n, "exit" if n == 500 else "") for n in range(1_000)])
        await scene.publish(Job("bad", 1_000))
        await scene.run(most_deaths=most_deaths(1_000))
        await assert_parked(scene, "bad", handler="handle_all")


# ---- handlers that do not end ----


@pytest.mark.parametrize(
    ("kind", "does"),
    [("async", "deaf"), ("async", "block"), ("plain", "never")],
    ids=["ignores its cancellation", "blocks", "plain"],
)
async def test_a_handler_that_cannot_be_stopped_ends_the_process_that_names_it(tmp_path: Path, kind: str, does: str) -> None:
    async with Scene(tmp_path, kind=kind, time_limit_s=0.5) as scene:
        await scene.publish(*with_killer(does))
        assert await scene.run(most_deaths=TRIES) == [70] * TRIES
        await assert_parked(scene, "bad")


async def test_a_batch_that_cannot_be_stopped_is_halved(tmp_path: Path) -> None:
    async with Scene(tmp_path, kind="batch", time_limit_s=0.5, most=4) as scene:
        await scene.publish(*with_killer("block"))
        assert set(await scene.run(most_deaths=most_deaths(4))) == {70}
        await assert_parked(scene, "bad", handler="handle_all")


@pytest.mark.parametrize("does", ["sys.exit", "memory"])
@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_handler_that_exits_or_finds_no_memory_only_fails(tmp_path: Path, kind: str, does: str) -> None:
    async with Scene(tmp_path, kind=kind) as scene:
        await scene.publish(*with_killer(does))
        assert await scene.run(most_deaths=0) == []
        await assert_parked(scene, "bad", cause=Cause.FAILED, handler="handle" if does == "sys.exit" else "MemoryError")


# ---- kills from outside ----


async def test_deploys_that_kill_their_workers_park_nothing(tmp_path: Path) -> None:
    dice = random.Random(1)
    async with Scene(tmp_path, work_s=0.02, concurrency=8) as scene:
        for at in range(20):
            await scene.publish(*[Job(f"k{n % 40}", n) for n in range(at * 100, at * 100 + 100)])
            worker = await scene.start(wait=True)
            for _ in range(dice.randrange(1, 16)):  # so many commits later
                await scene.store.wait(0.02)
            assert await worker.end(signal.SIGKILL) == KILLED
        assert await scene.run(most_deaths=0) == []
        assert await scene.store.parked() == []
        assert await scene.faults() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_search_that_is_cut_short_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    dice = random.Random(3)
    async with Scene(tmp_path, work_s=0.02) as scene:
        await scene.publish(*with_killer("later"))
        for _ in range(5):
            worker = await scene.start(wait=True)
            for _ in range(dice.randrange(1, 6)):
                await scene.store.wait(0.02)
            assert await worker.end(number) in (0, KILLED, 9)
        await scene.run(most_deaths=most_deaths(4))
        await assert_parked(scene, "bad")


# ---- positive controls ----


@pytest.mark.parametrize("bug", ["unattempted", "blind"])
async def test_without_a_note_of_what_is_attempted_the_processes_die_for_ever(tmp_path: Path, bug: str) -> None:
    async with Scene(tmp_path, bug=bug) as scene:
        await scene.publish(*with_killer("exit"))
        with pytest.raises(NeverSettles):
            await scene.run(most_deaths=most_deaths(4))


async def test_a_process_that_names_nobody_dies_more_often(tmp_path: Path) -> None:
    async with Scene(tmp_path, time_limit_s=0.5, bug="unaccused") as scene:
        await scene.publish(*with_killer("deaf"))
        with pytest.raises(NeverSettles):
            await scene.run(most_deaths=TRIES)
