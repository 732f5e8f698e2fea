"""Single jumps of the clock, and reboots: what leases, retries, sessions and retention do."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.faults.clock_shop import HOUR_S, JUMPS_S, YEAR_S
from tests.subscriptions.world import Left, World, make_world

from everlog import App, Delivery, Retry
from everlog.conformance.store.harness import APP, LOG, SLOT, STOCK, Worker
from everlog.drivers.process import Process, this_process
from everlog.log import Log, ProducerBatch, Status, TopicSpec
from everlog.logs.memory import MemoryLog
from everlog.logs.sqlite import open_log
from everlog.record import NewRecord
from everlog.store import Outcome
from everlog.stores.sqlite import leases
from everlog.stores.sqlite import store as store_file
from everlog.stores.sqlite.store import SqliteStore
from everlog.testing.clock import ManualClock

LEASE_S = 600.0
"""Long, so that no heartbeat comes by the real time meanwhile."""
TOPIC = TopicSpec("test.sessions", key="key", partitions=1, keep_s=HOUR_S)

Patch = pytest.MonkeyPatch


@asynccontextmanager
async def member(path: Path, clock: ManualClock) -> AsyncGenerator[Worker]:
    """Open a store as a process that works on the subscription of the suite."""
    store = SqliteStore(path, clock=clock, lease_s=LEASE_S)
    await store.open()
    try:
        await store.register(APP, log=LOG)
        yield Worker(store, await store.join({STOCK: []}, alive_s=1e9))
    finally:
        await store.aclose()


async def may_take(worker: Worker) -> bool:
    return await worker.store.acquire(SLOT) is not None


async def goes_on(worker: Worker) -> bool:
    return await worker.commit(worker.unit()) == [Outcome.COMMITTED]


def of_boot(patch: Patch, name: str) -> None:
    """Let processes that begin from now on be of this boot."""
    process = replace(this_process(), boot=name)

    def booted() -> Process:
        return process

    patch.setattr(store_file, "this_process", booted)


# ---- leases ----


async def lost_or_kept(path: Path, seconds: float) -> list[str]:
    """Return what a jump of the wall time does to a lease that it must not do."""
    clock, wrong = ManualClock(), list[str]()
    async with member(path, clock) as owner, member(path, clock) as other:
        await owner.take(SLOT)
        clock.advance(LEASE_S * 0.9)
        clock.jump(seconds)
        if await may_take(other):
            wrong.append("the jump took the slot from a live owner")
        elif not await goes_on(owner):
            wrong.append("the owner was fenced")
        clock.advance(LEASE_S * 0.2)
        if not wrong and not await may_take(other):
            wrong.append("the silent owner keeps the slot")
    return wrong


@pytest.mark.parametrize("seconds", JUMPS_S)
async def test_a_jump_neither_takes_a_lease_nor_lengthens_it(tmp_path: Path, seconds: float) -> None:
    assert await lost_or_kept(tmp_path / "a.db", seconds) == []


@pytest.mark.parametrize("seconds", JUMPS_S)
async def test_a_lease_by_the_wall_time_is_caught(tmp_path: Path, monkeypatch: Patch, seconds: float) -> None:
    def by_wall(self: SqliteStore) -> leases.Now:
        return leases.Now(self._clock.wall_us() / 1e6, self._lease_s, self._process)

    monkeypatch.setattr(SqliteStore, "_now", by_wall)
    assert await lost_or_kept(tmp_path / "a.db", seconds)


async def test_a_machine_that_slept_goes_on_with_its_slots(tmp_path: Path) -> None:
    clock = ManualClock()
    async with member(tmp_path / "a.db", clock) as owner:
        await owner.take(SLOT)
        clock.jump(HOUR_S)  # it shows in the wall time alone
        assert await goes_on(owner)
        clock.advance(HOUR_S)  # or in both, and nobody has taken the slot meanwhile
        assert await goes_on(owner)


@pytest.mark.parametrize("monotonic_s", [0.5, 1_000_000.0])
async def test_after_a_reboot_the_slots_are_free_at_once(tmp_path: Path, monkeypatch: Patch, monotonic_s: float) -> None:
    of_boot(monkeypatch, "the first")
    async with member(tmp_path / "a.db", ManualClock(monotonic_s=50_000.0)) as before:
        await before.take(SLOT)
        before.store._member = None  # type: ignore[attr-defined]  # as a loss of power leaves it: nothing is given back
    of_boot(monkeypatch, "the second")
    async with member(tmp_path / "a.db", ManualClock(monotonic_s=monotonic_s)) as after:
        lease = await after.take(SLOT)
        assert lease.is_unclean
        await after.store.load(lease)
        assert await goes_on(after)


# ---- what the campaign found, each by itself ----


@pytest.mark.parametrize("seconds", [-HOUR_S, -YEAR_S])
async def test_a_clock_set_back_while_the_app_runs_does_not_delay_a_retry(monkeypatch: Patch, seconds: float) -> None:
    app = App("app", delivery=Delivery(start="beginning", on_error={Exception: Retry(attempts=9, first_s=10, most_s=30)}))
    calls: list[float] = []

    @app.on(Left)
    async def handle(event: Left) -> None:
        calls.append(w.clock.monotonic_s())
        if len(calls) == 1:
            raise RuntimeError("down")

    w = await make_world(app, monkeypatch)
    try:
        await w.client.publish(Left("a"))
        await w.start()
        await _until_it_waits(w)
        w.clock.jump(seconds)
        for _ in range(50):
            await w.tick(1.0)
        assert len(calls) == 2
        assert calls[1] - calls[0] <= 31
    finally:
        await w.aclose()


async def _until_it_waits(w: World) -> None:
    """Wait until the failed event is stored, and the app sleeps until it is due."""
    while not w.clock._sleepers or not (await w.store.status()).subscriptions[0].blocked_keys:
        await w.tick()
    for _ in range(10):
        await w.tick()


async def opened(name: str, folder: Path, clock: ManualClock) -> Log:
    log: Log = MemoryLog(clock) if name == "memory" else await open_log(f"sqlite:{folder / 'log.db'}", clock=clock)
    await log.ensure_topic(TOPIC)
    return log


async def sent(log: Log, number: int, producer: str) -> Status:
    record = NewRecord("test.sent/1", b"%d" % number, "k", 0, "shop", number)
    appended: Any = await log.append(TOPIC.name, [record], producer=ProducerBatch(producer, {0: 0}))
    return appended.statuses[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["memory", "sqlite"])
async def test_what_a_session_sends_again_after_a_jump_is_not_stored_twice(tmp_path: Path, name: str) -> None:
    clock = ManualClock()
    log = await opened(name, tmp_path, clock)
    try:
        assert await sent(log, 1, "mine") is Status.STORED
        clock.jump(YEAR_S)
        assert await sent(log, 2, "another") is Status.STORED
        assert await sent(log, 1, "mine") is Status.DUPLICATE
    finally:
        await log.aclose()
