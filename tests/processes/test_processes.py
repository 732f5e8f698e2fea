"""Real processes on one log and one store, killed, stopped and restarted: nothing acknowledged is lost or has its effect twice."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import random
import signal
from pathlib import Path

import pytest
from tests.processes.yard import Process, Yard


async def test_members_share_slots_evenly_as_they_come_and_go(tmp_path: Path) -> None:
    async with Yard(tmp_path) as yard:
        first = await yard.worker()
        await yard.until_shares([8])
        await yard.worker()
        await yard.until_shares([4, 4])
        third = await yard.worker()
        await yard.until_shares([2, 3, 3])
        assert await first.end(signal.SIGTERM) == 0
        await yard.until_shares([4, 4])
        await third.end(signal.SIGKILL)
        await yard.until_shares([8])


async def test_a_dead_process_is_replaced_at_once_and_not_after_its_lease(tmp_path: Path) -> None:
    async with Yard(tmp_path, lease_s=30) as yard:
        await yard.worker()
        second = await yard.worker()
        await yard.until_shares([4, 4])
        await second.end(signal.SIGKILL)
        assert await yard.until_shares([8]) < 5


async def test_members_join_and_leave_under_load_without_stopping_the_others(tmp_path: Path) -> None:
    async with Yard(tmp_path) as yard:
        publisher = await yard.publisher("p", 1, 1_000_000)
        await yard.worker()
        await yard.until_shares([8])
        await publisher.said(30)
        second = await yard.worker()
        await yard.until_shares([4, 4])
        assert await second.end(signal.SIGTERM) == 0
        await yard.until_shares([8])
        await publisher.end()
        await yard.settle()
        assert await yard.faults() == []


@pytest.mark.parametrize("seed", [1, 2])
async def test_workers_that_are_killed_again_and_again_have_each_effect_once(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    async with Yard(tmp_path) as yard:
        workers = [await yard.worker() for _ in range(3)]
        publishers = [await yard.publisher(name, seed, 1_200) for name in ("p", "q")]
        for _ in range(10):
            for _ in range(dice.randrange(1, 40)):  # so many commits later
                await yard.store.wait(0.05)
            victim = dice.randrange(3)
            await workers[victim].end(signal.SIGKILL)
            workers[victim] = await yard.worker(wait=dice.random() < 0.3)
        for publisher in publishers:
            async with asyncio.timeout(20):
                await publisher.child.wait()
        await yard.settle()
        assert await yard.faults() == []
        for worker in workers:
            assert await worker.end(signal.SIGTERM) in (0, -signal.SIGTERM)  # the second: not yet started


async def _stopped_outside_a_commit(yard: Yard, victim: Process, turn: Path) -> None:
    """Stop a process while it does not hold the store's turn: with it, it holds the file's lock, and no lease can help."""
    while True:
        victim.send(signal.SIGSTOP)
        while not victim.is_stopped:  # its other threads run on until the first one has seen the signal
            await yard.store.wait(0.01)
        with turn.open("rb") as file:
            for _ in range(10):
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # closing the file gives it back
                    return
                await yard.store.wait(0.02)  # the worker that runs has it, and passes it on
        victim.send(signal.SIGCONT)
        await yard.store.wait(0.05)


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_worker_that_is_stopped_past_its_lease_commits_nothing_stale_when_it_wakes(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    async with Yard(tmp_path, lease_s=0.5) as yard:
        workers = [await yard.worker() for _ in range(2)]
        await yard.until_shares([4, 4])
        publisher = await yard.publisher("p", seed, 1_000_000)
        for turn in range(6):
            for _ in range(dice.randrange(1, 20)):
                await yard.store.wait(0.05)
            victim = workers[turn % 2]
            await _stopped_outside_a_commit(yard, victim, tmp_path / "shop.db-turn")
            await yard.until_shares([8])
            victim.send(signal.SIGCONT)
            await yard.until_shares([4, 4])
        await publisher.end()
        await yard.settle()
        assert await yard.faults() == []
        for worker in workers:
            assert await worker.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("seed", [1, 2])
async def test_publishers_that_are_killed_lose_nothing_that_was_acknowledged(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    async with Yard(tmp_path) as yard:
        await yard.worker()
        for turn in range(4):
            pair = [await yard.publisher(f"p{turn}{which}", seed, 1_000_000) for which in "ab"]
            for publisher in pair:
                await publisher.said(dice.randrange(1, 40))
                await publisher.end(signal.SIGKILL)
        await yard.settle()
        assert sum(len(publisher.lines) for publisher in yard.publishers.values()) > 20
        assert await yard.faults() == []


# ---- positive controls ----


@pytest.mark.parametrize("bug", ["torn", "skip"])
async def test_a_seeded_bug_is_caught(tmp_path: Path, bug: str) -> None:
    async with Yard(tmp_path) as yard:
        worker = await yard.worker(bug=bug)
        publisher = await yard.publisher("p", 1, 400)
        for _ in range(8):
            async with asyncio.timeout(20):
                done, _ = await asyncio.wait(
                    [asyncio.ensure_future(worker.child.wait()), asyncio.ensure_future(publisher.child.wait())],
                    return_when=asyncio.FIRST_COMPLETED,
                )
            assert done
            if worker.child.returncode is None:
                break
            worker = await yard.worker(bug=bug)
        await worker.end(signal.SIGKILL)
        await yard.worker()
        await publisher.end()
        await yard.settle()
        assert await yard.faults() != []
