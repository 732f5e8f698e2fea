"""The clock that tests move."""

from __future__ import annotations

import asyncio

import pytest

from everlog.clock import Clock
from everlog.testing.clock import ManualClock


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_it_is_a_clock_that_stands_still() -> None:
    clock: Clock = ManualClock(wall_us=5, monotonic_s=7.0)
    assert (clock.wall_us(), clock.monotonic_s()) == (5, 7.0)


def test_advancing_moves_both_times_and_jumping_only_the_wall() -> None:
    clock = ManualClock(wall_us=0, monotonic_s=0.0)
    clock.advance(1.5)
    clock.jump(-10)
    assert (clock.wall_us(), clock.monotonic_s()) == (-8_500_000, 1.5)


def test_the_monotonic_time_cannot_go_back() -> None:
    with pytest.raises(ValueError, match="jump"):
        ManualClock().advance(-1)


async def test_sleepers_are_woken_at_their_time_in_the_order_of_their_times() -> None:
    clock = ManualClock()
    woken: list[str] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(name)

    tasks = [asyncio.create_task(sleeper(name, seconds)) for name, seconds in (("c", 9), ("b", 2), ("a", 1), ("d", 9))]
    await turns()
    clock.advance(0.999)
    await turns()
    assert woken == []
    clock.advance(1.5)
    await turns()
    assert woken == ["a", "b"]
    clock.jump(3600)
    await turns()
    assert woken == ["a", "b"]
    clock.advance(10)
    await asyncio.gather(*tasks)
    assert woken == ["a", "b", "c", "d"]


async def test_a_cancelled_sleeper_is_passed_over() -> None:
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(1))
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    clock.advance(2)


async def test_sleeping_for_nothing_lets_other_tasks_run() -> None:
    clock = ManualClock()
    ran: list[int] = []
    task = asyncio.create_task(turns())
    task.add_done_callback(lambda _: ran.append(1))
    for _ in range(10):
        await clock.sleep(0)
    assert ran == [1]
