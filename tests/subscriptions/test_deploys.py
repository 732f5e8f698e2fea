"""Old and new code side by side on one log and one store: forward, back, and with a version that only one of them knows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.subscriptions.world import DEADLINE_S, LEASE_S

from everlog import App, Delivery, Event, Topic, Tx
from everlog.client import Client
from everlog.errors import StartUndecided
from everlog.log import Log
from everlog.logs.sqlite import open_log
from everlog.runtime import AppRuntime
from everlog.settings import Settings
from everlog.store import Cause, Held, Store
from everlog.stores.sqlite import open_store
from everlog.stores.sqlite.store import SqliteStore
from everlog.testing.clock import ManualClock

SLOTS = 4


class Code:
    """One version of an app's code: the types that it knows, and what its handler was called for.

    Args:
        names: Wire names, of one topic.
        seen: Where calls are noted, with the name of the code.
    """

    def __init__(self, name: str, *names: str, seen: list[tuple[str, str, int]]) -> None:
        topic = Topic("deploy.orders", key="key", partitions=SLOTS)
        self.types: dict[str, type[Any]] = {}
        for wire in names:

            class Order(Event):
                key: str
                n: int = 0

            self.types[wire] = topic.event(wire)(Order)
        self.app = App("deploy", delivery=Delivery(start="beginning"))
        journal = self.app.state("journal/1", list[int])

        async def handle(event: Any, tx: Tx) -> None:
            seen.append((name, event.key, event.n))
            tx.put(journal, event.key, [*await tx.get(journal, event.key, list[int]()), event.n])

        self.app.on(*self.types.values())(handle)


class Yard:
    """A log and a store in files, and members with code of their own."""

    def __init__(self, folder: Path, log: Log, store: Store, clock: ManualClock) -> None:
        self.log = log
        self.store = store
        self.clock = clock
        self.seen: list[tuple[str, str, int]] = []
        self.client = Client(log, source="test", clock=clock)
        self.settings = Settings(log_url="memory:", store_url=f"sqlite:{folder / 'store.db'}", lease_s=LEASE_S)
        self.members: list[Member] = []

    def code(self, name: str, *names: str) -> Code:
        return Code(name, *names, seen=self.seen)

    async def start(self, code: Code) -> Member:
        member = Member(self, code)
        await member.start()
        self.members.append(member)
        return member

    async def until(self, condition: Callable[[], Any], *, step_s: float = 0.05) -> None:
        """Wait until something holds, and move the clock meanwhile."""
        async with asyncio.timeout(3 * DEADLINE_S):
            while True:
                found = condition()
                if asyncio.iscoroutine(found):
                    found = await found
                if found:
                    return
                for member in self.members:
                    member.check()
                await asyncio.sleep(0.002)
                self.clock.advance(step_s)

    async def owners(self) -> set[int | None]:
        return set((await self.store.survey("deploy")).owners.values())

    async def held(self, key: str) -> list[Held]:
        found: list[Held] = []
        for one in await self.store.parked():
            if one.key == key:
                from everlog.store import Slot

                found.extend(await self.store.held(Slot("deploy", one.first.slot), key, limit=100))
        return found

    async def holds(self, key: str, count: int) -> bool:
        """Tell whether so many records of a key are held."""
        return len(await self.held(key)) == count

    def numbers(self, key: str) -> list[int]:
        return [n for _, seen, n in self.seen if seen == key]


class Member:
    """One process' worth of an app."""

    def __init__(self, yard: Yard, code: Code) -> None:
        self._yard = yard
        self._stop = asyncio.Event()
        self._runtime = AppRuntime(code.app.declaration(), yard.log, yard.settings, yard.clock)
        self._run: asyncio.Task[None] | None = None

    async def start(self) -> None:
        ready = asyncio.Event()
        run = self._run = asyncio.create_task(self._runtime.run(self._stop, lambda _: ready.set()))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait([run, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if run.done():
            self._run = None
            run.result()

    @property
    def number(self) -> int:
        assert isinstance(self._runtime.store, SqliteStore)
        assert self._runtime.store._member is not None
        return self._runtime.store._member.number

    def check(self) -> None:
        if self._run is not None and self._run.done():
            self._run.result()

    async def stop(self) -> None:
        run, self._run = self._run, None
        self._stop.set()
        if run is not None:
            async with asyncio.timeout(DEADLINE_S):
                await run

    async def die(self) -> None:
        """End without giving anything back, as after a kill, and let the lease run out."""
        run, self._run = self._run, None
        assert isinstance(self._runtime.store, SqliteStore)
        self._runtime.store._member = None
        if run is not None:
            run.cancel()
            with suppress(asyncio.CancelledError):
                await run
        for _ in range(4):  # the others stay alive meanwhile
            self._yard.clock.advance(LEASE_S / 2)
            for member in self._yard.members:
                if member._run is not None:
                    member._runtime.store.turned()
                    assert isinstance(member._runtime.store, SqliteStore)
                    job = member._runtime.store._heartbeat()
                    assert job is not None
                    await member._runtime.store._write(job.run)


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    clock = ManualClock()
    log = await open_log(f"sqlite:{tmp_path / 'log.db'}", clock=clock)
    store = await open_store(f"sqlite:{tmp_path / 'store.db'}", clock=clock, lease_s=LEASE_S)
    made = Yard(tmp_path, log, store, clock)
    yield made
    for member in made.members:
        await member.stop()
    await store.aclose()
    await log.aclose()


async def test_a_version_that_the_code_does_not_know_waits_with_its_key_until_code_comes_that_does(yard: Yard) -> None:
    old, new = yard.code("old", "deploy.order/1"), yard.code("new", "deploy.order/1", "deploy.order/2")
    first, second = new.types["deploy.order/1"], new.types["deploy.order/2"]
    member = await yard.start(old)
    await yard.client.publish(first("a", 0), second("a", 1), first("a", 2), first("b", 3))
    await yard.until(lambda: yard.numbers("b") == [3])

    await yard.until(lambda: yard.holds("a", 2))
    assert [one.cause for one in await yard.held("a")] == [Cause.UNREADABLE, Cause.BEHIND]
    assert yard.numbers("a") == [0]
    await member.stop()
    await yard.start(new)
    await yard.until(lambda: yard.holds("a", 0))
    assert yard.numbers("a") == [0, 1, 2]


async def test_with_both_alive_the_new_code_has_all_slots_and_nothing_is_parked(yard: Yard) -> None:
    old, new = yard.code("old", "deploy.order/1"), yard.code("new", "deploy.order/1", "deploy.order/2")
    first, second = new.types["deploy.order/1"], new.types["deploy.order/2"]
    one = await yard.start(old)
    await yard.client.publish(*[first(f"k{n}", 0) for n in range(8)])
    await yard.until(lambda: len(yard.seen) == 8)
    two = await yard.start(new)

    async def is_taken_over() -> bool:
        return await yard.owners() == {two.number}

    await yard.until(is_taken_over)
    await yard.client.publish(*[cls(f"k{n}", m) for n in range(8) for m, cls in enumerate((second, first, second), start=1)])
    await yard.until(lambda: len(yard.seen) == 32)
    assert {name for name, _, n in yard.seen if n} == {"new"}
    assert all(yard.numbers(f"k{n}") == [0, 1, 2, 3] for n in range(8))
    assert await yard.store.parked() == []
    one.check()


async def test_when_the_new_code_dies_the_old_one_takes_over_and_keeps_what_it_cannot_read(yard: Yard) -> None:
    old, new = yard.code("old", "deploy.order/1"), yard.code("new", "deploy.order/1", "deploy.order/2")
    first, second = new.types["deploy.order/1"], new.types["deploy.order/2"]
    one, two = await yard.start(old), await yard.start(new)

    async def belongs_to(number: int) -> bool:
        return await yard.owners() == {number}

    await yard.client.publish(first("a", 0))
    await yard.until(lambda: belongs_to(two.number))
    await yard.until(lambda: yard.numbers("a") == [0])
    await two.die()
    await yard.until(lambda: belongs_to(one.number))
    await yard.client.publish(first("a", 1), second("a", 2), first("a", 3), first("b", 4))
    await yard.until(lambda: yard.numbers("b") == [4])

    await yard.until(lambda: yard.holds("a", 2))
    assert yard.seen[-1][0] == "old"
    await yard.start(yard.code("newer", "deploy.order/1", "deploy.order/2"))
    await yard.until(lambda: yard.holds("a", 0))
    assert yard.numbers("a") == [0, 1, 2, 3]


async def test_a_deploy_that_is_taken_back_and_made_again_handles_every_event_once_in_order(yard: Yard) -> None:
    old, new = yard.code("old", "deploy.order/1"), yard.code("new", "deploy.order/1", "deploy.order/2")
    first, second = new.types["deploy.order/1"], new.types["deploy.order/2"]
    sent = 0
    for code in (old, new, old, new):
        member = await yard.start(code)
        for _ in range(3):
            await yard.client.publish(*[(second if (sent + k) % 3 == 2 else first)(f"k{k}", sent) for k in range(3)])
            sent += 1
        await yard.until(lambda: _is_still(yard))
        await member.stop()
    await yard.start(new)
    await yard.until(lambda: len(yard.seen) == 3 * sent)
    assert all(yard.numbers(f"k{k}") == list(range(sent)) for k in range(3))
    await yard.until(lambda: _is_drained(yard))  # the last one is still to be committed


async def _is_drained(yard: Yard) -> bool:
    return await yard.store.parked() == []


async def _is_still(yard: Yard) -> bool:
    """Every record is finished or held."""
    head = (await yard.log.head("deploy.orders")).offsets
    (status,) = (await yard.store.status()).subscriptions
    return all(not one.unfinished and one.through >= head[one.where] for one in status.progress)


async def test_of_two_that_each_lack_something_the_newest_has_the_slots(yard: Yard) -> None:
    left, right = yard.code("left", "deploy.order/1", "deploy.order/2"), yard.code("right", "deploy.order/1", "deploy.order/3")
    await yard.start(left)
    two = await yard.start(right)

    async def is_taken_over() -> bool:
        return await yard.owners() == {two.number}

    await yard.until(is_taken_over)
    await yard.client.publish(right.types["deploy.order/3"]("a", 0), right.types["deploy.order/1"]("a", 1))
    await yard.until(lambda: yard.numbers("a") == [0, 1])
    assert {name for name, _, _ in yard.seen} == {"right"}


async def test_a_type_that_the_log_has_never_seen_is_not_refused_and_one_with_a_past_is(yard: Yard) -> None:
    old = yard.code("old", "deploy.order/1")
    member = await yard.start(old)
    await yard.client.publish(old.types["deploy.order/1"]("a", 0))
    await yard.until(lambda: yard.numbers("a") == [0])
    unseen = await yard.start(yard.code("unseen", "deploy.order/1", "deploy.paid/1"))
    await member.stop()
    await unseen.stop()
    elsewhere = yard.code("elsewhere", "deploy.order/1", "deploy.sent/1")
    await yard.client.publish(elsewhere.types["deploy.sent/1"]("a", 1))
    with pytest.raises(StartUndecided, match=r"deploy\.sent/1"):
        await yard.start(yard.code("late", "deploy.order/1", "deploy.paid/1", "deploy.sent/1"))
    third = await yard.start(yard.code("as before", "deploy.order/1", "deploy.paid/1"))
    await third.stop()
