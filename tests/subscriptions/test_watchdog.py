"""The watchdog, with limits that are short and a handler that blocks for real."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast

import pytest

from everlog.subscriptions import watchdog
from everlog.subscriptions.watchdog import Watchdog

LIMIT_S = 0.1


class Ended:
    """Notes whom the watchdog asked for, and why it ended the process."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[Any] | None] = []
        self.why: list[str] = []
        self.is_over = threading.Event()

    def accuse(self, task: asyncio.Task[Any] | None) -> str | None:
        self.tasks.append(task)
        return "shop/orders" if task is not None and task.get_name() == "handler" else None

    def end(self, why: str) -> None:
        self.why.append(why)
        self.is_over.set()

    def dog(self) -> Watchdog:
        dog = Watchdog(LIMIT_S, accuse=self.accuse, end=cast("Any", self.end))
        dog.start()
        return dog


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Ended:
    monkeypatch.setattr(watchdog, "_LOOK_EVERY_S", 0.02)
    return Ended()


async def _block(ended: Ended) -> None:
    ended.is_over.wait(5)  # as a handler that computes


async def test_a_task_that_blocks_the_event_loop_is_named_with_where_it_was(ended: Ended) -> None:
    watching = asyncio.create_task(ended.dog().run())
    await asyncio.sleep(0)
    handler = asyncio.create_task(_block(ended), name="handler")
    await handler
    watching.cancel()
    why = ended.why[0]
    assert ended.tasks[0] is handler
    assert why.startswith("shop/orders has blocked the event loop for 0.1")
    assert "in _block" in why


async def test_what_blocks_the_event_loop_before_it_has_turned_once_is_found_too(ended: Ended) -> None:
    dog = ended.dog()
    await _block(ended)  # in this very turn
    dog.close()
    assert "in _block" in ended.why[0]


async def test_who_is_no_handler_is_said_to_be_none(ended: Ended) -> None:
    watching = asyncio.create_task(ended.dog().run())
    await asyncio.sleep(0)
    await asyncio.create_task(_block(ended), name="something else")
    watching.cancel()
    assert ended.why[0].startswith("something that is no handler")


async def test_an_event_loop_that_turns_is_left_alone(ended: Ended) -> None:
    watching = asyncio.create_task(ended.dog().run())
    for _ in range(16):
        await asyncio.sleep(LIMIT_S / 4)
    watching.cancel()
    assert ended.why == []


async def test_its_thread_ends_with_it(ended: Ended) -> None:
    watching = asyncio.create_task(ended.dog().run())
    await asyncio.sleep(0)
    (thread,) = [one for one in threading.enumerate() if one.name == "everlog-watchdog"]
    watching.cancel()
    await asyncio.wait([watching])
    await asyncio.to_thread(cast("Any", thread).join, 5)
    assert not thread.is_alive()
