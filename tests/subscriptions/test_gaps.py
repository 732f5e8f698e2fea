"""What retention deletes before a subscription has handled it: named or refused, never passed over in silence, and never more than that."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path

import pytest
from tests.subscriptions.world import LEASE_S, PARTITIONS, Left, Make, World, left

from everlog import App, Delivery, Tx
from everlog.contracts.contract import contract_of
from everlog.errors import HistoryGone
from everlog.stores.sqlite import open_store
from everlog.subscriptions import feed

KEY = "a"


async def _publish(w: World, first: int, count: int) -> None:
    for start in range(first, first + count, 500):
        await w.client.publish(*[Left(KEY, n) for n in range(start, min(start + 500, first + count))])


def _lost(caplog: pytest.LogCaptureFixture) -> set[int]:
    """Return the offsets that the log of the process names as gone."""
    lost: set[int] = set()
    for record in caplog.records:
        found = re.search(r"behind offset (-?\d+) and up to (\d+) were deleted", record.getMessage())
        if found is not None:
            lost.update(range(int(found[1]) + 1, int(found[2]) + 1))
    return lost


class Slow:
    """An app that waits at its first event until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, on_gap: str) -> None:
        monkeypatch.setattr(feed, "_QUEUED_BYTES", 1)  # one read ahead, so that the rest is still to be read
        delivery = Delivery(start="beginning", concurrency=1, on_gap="oldest" if on_gap == "oldest" else "stop")
        self.app = App("app", delivery=delivery)
        self.seen: list[int] = []
        self.go = asyncio.Event()
        self.began = asyncio.Event()
        count = self.app.state("count/1", int)

        @self.app.on(Left)
        async def handle(event: Left, tx: Tx) -> None:
            self.began.set()
            await self.go.wait()
            self.seen.append(event.n)
            tx.add(count, event.key, 1)


async def test_each_event_is_handled_or_named_as_deleted(
    world: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slow = Slow(monkeypatch, on_gap="oldest")
    w = await world(slow.app)
    await _publish(w, 0, 8_000)
    await w.start()
    await asyncio.wait_for(slow.began.wait(), 5)
    await w.log.trim(left.name, await w.log.head(left.name))
    await _publish(w, 8_000, 20)
    with caplog.at_level(logging.ERROR, logger="everlog"):
        slow.go.set()
        await w.settle()
    lost = _lost(caplog)
    assert lost
    assert sorted(slow.seen) == slow.seen
    assert set(slow.seen) | lost == set(range(8_020))
    assert not set(slow.seen) & lost
    assert (await w.store.status()).subscriptions[0].progress[0].unfinished == []


async def test_what_was_read_before_the_gap_is_handled_after_a_crash_too(
    world: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slow = Slow(monkeypatch, on_gap="oldest")
    w = await world(slow.app)
    await _publish(w, 0, 8_000)
    await w.start()
    await asyncio.wait_for(slow.began.wait(), 5)
    with caplog.at_level(logging.ERROR, logger="everlog"):
        await w.log.trim(left.name, await w.log.head(left.name))
        slow.go.set()
        await w.until(lambda: len(slow.seen) > 700)
        await w.crash()
        await _publish(w, 8_000, 20)
        await w.start()
        await w.settle()
    assert set(slow.seen) | _lost(caplog) == set(range(8_020)), "what was in memory is gone with the log, and is named"
    assert set(range(8_000, 8_020)) <= set(slow.seen)
    assert next(iter((await w.rows("count/1")).values())) == str(8_020 - len(_lost(caplog))).encode(), (
        "what is not named is counted once"
    )


async def test_an_app_that_is_told_to_stop_ends_when_it_is_overtaken(world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(monkeypatch, on_gap="stop")
    w = await world(slow.app)
    await _publish(w, 0, 8_000)
    await w.start()
    await asyncio.wait_for(slow.began.wait(), 5)
    await w.log.trim(left.name, await w.log.head(left.name))
    slow.go.set()
    await w.until(lambda: w.has_ended)
    with pytest.raises(HistoryGone, match="retention has deleted up to"):
        await w.stop()


async def test_who_was_stopped_for_long_and_has_lost_its_slots_is_not_told_of_what_others_have_handled(
    world: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    slow = Slow(monkeypatch, on_gap="stop")
    w = await world(slow.app, folder=tmp_path)
    await _publish(w, 0, 8_000)
    await w.start()
    await asyncio.wait_for(slow.began.wait(), 5)
    other = await open_store(f"sqlite:{tmp_path / 'store.db'}", clock=w.clock, lease_s=LEASE_S)
    member = (await other.join({"app": [contract_of(Left).name]}, alive_s=LEASE_S)).member
    await w.store._write(
        lambda connection: connection.execute("UPDATE lease SET epoch = epoch + 9, member = ?", (member,)).fetchall()
    )
    await w.log.trim(left.name, await w.log.head(left.name))
    slow.go.set()
    await w.until(lambda: len(w.engines()["app"].works) < PARTITIONS)
    await w.stop()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    await other.aclose()


async def test_a_reader_that_is_overtaken_where_all_was_handled_says_nothing(
    world: Make, caplog: pytest.LogCaptureFixture
) -> None:
    app = App("app", delivery=Delivery(start="beginning", on_gap="stop"))
    seen: list[int] = []

    @app.on(Left)
    async def handle(event: Left) -> None:
        seen.append(event.n)

    w = await world(app)
    await _publish(w, 0, 100)
    await w.start()
    await w.settle()
    await w.stop()
    await w.log.trim(left.name, await w.log.head(left.name))
    await w.start()
    await _publish(w, 100, 5)
    await w.settle()
    assert seen == list(range(105))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
