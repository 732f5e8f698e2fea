"""Time limits: who is cancelled, who is given up, and what a cancellation means for whoever the worker handles next."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress

import pytest
from tests.subscriptions.world import Left, Make

from everlog import App, Delivery, Retry, Tx
from everlog.errors import HandlerTimeout
from everlog.store import ParkedKey
from everlog.subscriptions.worker import IGNORED_S, Worker, keep_time_limit
from everlog.testing.clock import ManualClock

LIMIT_S = 2.0


class Deaf:
    """A handler's task that notes each cancellation and goes on."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.may_end = asyncio.Event()

    async def run(self) -> None:
        while not self.may_end.is_set():
            try:
                await self.may_end.wait()
            except asyncio.CancelledError:
                self.cancelled += 1


class Watched:
    """A worker with a deaf handler under a limit."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.handler = Deaf()
        self.worker = Worker()
        self.worker.task = asyncio.create_task(self.handler.run())
        self.worker.watched = object()
        self.given_up: list[Worker] = []
        self.watch = asyncio.create_task(
            keep_time_limit([self.worker], LIMIT_S, self.clock, look=lambda: None, ignored=self.given_up.append)
        )

    async def pass_by(self, seconds: float, *, step_s: float = 0.05) -> None:
        for _ in range(round(seconds / step_s)):
            self.clock.advance(step_s)
            await self.turn()

    async def turn(self) -> None:
        for _ in range(4):
            await asyncio.sleep(0)

    async def end(self) -> None:
        self.watch.cancel()
        self.handler.may_end.set()
        with suppress(asyncio.CancelledError):
            await self.watch
        assert self.worker.task is not None
        await self.worker.task


async def test_a_handler_is_cancelled_once_at_its_limit_and_given_up_when_it_ignores_that() -> None:
    one = Watched()
    await one.turn()
    await one.pass_by(LIMIT_S * 0.95)
    assert one.handler.cancelled == 0
    await one.pass_by(LIMIT_S * 0.35)
    assert one.handler.cancelled == 1
    await one.pass_by(IGNORED_S * 0.9)
    assert not one.given_up
    await one.pass_by(IGNORED_S * 0.3)
    assert one.given_up[:1] == [one.worker]
    assert one.handler.cancelled == 1
    await one.end()


async def test_another_call_has_a_limit_of_its_own() -> None:
    one = Watched()
    await one.turn()
    for _ in range(5):
        await one.pass_by(LIMIT_S * 0.7)
        one.worker.watched = object()
    assert one.handler.cancelled == 0
    await one.end()


async def test_a_process_that_was_stopped_gives_up_nobody_who_had_no_time_to_end() -> None:
    one = Watched()
    await one.turn()
    await one.pass_by(LIMIT_S * 1.3)
    assert one.handler.cancelled == 1
    await one.pass_by(100.0, step_s=100.0)
    assert not one.given_up
    await one.end()


FAST = Delivery(start="beginning", concurrency=1, time_limit_s=1.0, on_error={HandlerTimeout: Retry(attempts=1)})


@pytest.mark.parametrize("comes", ["from the log", "from the store"])
@pytest.mark.parametrize("answers", ["with an error", "with an exit", "with a result"])
async def test_whoever_answers_its_cancellation_otherwise_ran_out_of_time_and_the_next_event_does_not(
    world: Make, answers: str, comes: str
) -> None:
    app = App("app", delivery=FAST)
    handled: list[int] = []
    first_calls: Iterator[str] = iter(["fails"] if comes == "from the store" else [])
    hangs: Iterator[str] = iter(["hangs"])

    @app.on(Left)
    async def handle(event: Left, tx: Tx) -> None:
        if event.key == "slow" and next(first_calls, None):
            raise ValueError("held, and tried again from the store")
        if event.key == "slow" and next(hangs, None):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if answers == "with a result":
                    return
                if answers == "with an exit":
                    raise SystemExit(1) from None
                raise ConnectionError("it was cut off") from None
        await asyncio.sleep(0)
        handled.append(event.n)

    w = await world(app)
    await w.client.publish(Left("slow", 1))
    await w.start()
    parked: list[ParkedKey] = []
    while not parked:
        await w.tick(0.3)
        parked = [one for one in await w.store.parked() if one.first.next_attempt_us is None]
    assert parked[0].first.error.startswith("HandlerTimeout")
    await w.client.publish(*[Left(f"k{n}", n) for n in range(5)])
    await w.settle(step_s=0.1)
    assert sorted(handled) == list(range(5))
    assert len(await w.store.parked()) == 1
    await w.stop()


@pytest.mark.parametrize(("raised", "line"), [(StopIteration(), "StopIteration"), (SystemExit(3), "HandlerExited")])
async def test_a_plain_handler_may_raise_what_a_future_does_not_take(world: Make, raised: BaseException, line: str) -> None:
    app = App("app", delivery=Delivery(start="beginning", on_error={Exception: "park"}))

    @app.on(Left)
    def handle(event: Left) -> None:
        if event.n == 0:
            raise raised

    w = await world(app)
    await w.client.publish(Left("bad", 0), Left("good", 1))
    await w.start()
    await w.settle()
    (parked,) = await w.store.parked()
    assert line in parked.first.error
    await w.stop()
