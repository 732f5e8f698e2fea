"""How a busy subscription lets others have the event loop."""

from __future__ import annotations

import asyncio

from everlog.subscriptions.turns import MOST_TURNS, let_others_run


class _Time:
    """Moves as others do something."""

    def __init__(self) -> None:
        self.s = 0.0

    def now_s(self) -> float:
        return self.s


async def _chain(steps: int, time: _Time, done: list[int]) -> None:
    """Run so many steps, each in a turn of its own."""
    for step in range(steps):
        time.s += 0.001
        done.append(step)
        await asyncio.sleep(0)


async def test_a_chain_of_steps_is_done_within_one_call() -> None:
    time = _Time()
    done: list[int] = []
    chain = asyncio.ensure_future(_chain(MOST_TURNS, time, done))
    await let_others_run(time.now_s)
    assert len(done) == MOST_TURNS
    await chain


async def test_where_nobody_uses_a_turn_there_is_one() -> None:
    turns = 0

    def count() -> None:
        nonlocal turns
        turns += 1
        loop.call_soon(count)

    loop = asyncio.get_running_loop()
    loop.call_soon(count)
    await let_others_run(_Time().now_s)
    assert turns == 1


async def test_others_without_end_do_not_keep_the_loop() -> None:
    time = _Time()
    done: list[int] = []
    endless = asyncio.ensure_future(_chain(1_000, time, done))
    await let_others_run(time.now_s)
    assert len(done) == MOST_TURNS
    endless.cancel()
