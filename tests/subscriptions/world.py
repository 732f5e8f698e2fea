"""One app at work in a test: a log and a store that outlive its crashes, a clock that is moved, and something to wait on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from everlog import App, Event, Topic
from everlog.client import Client
from everlog.contracts.contract import contract_of
from everlog.key import partition_of
from everlog.log import Log
from everlog.logs.memory import MemoryLog
from everlog.logs.sqlite import open_log
from everlog.position import BEGINNING, Offset, TopicPartition
from everlog.record import NewRecord, StoredRecord
from everlog.runtime import AppRuntime
from everlog.settings import Settings
from everlog.store import (
    Again,
    Held,
    Lease,
    Outcome,
    Progress,
    Room,
    Section,
    Slot,
    StateKey,
    Store,
    StoreStatus,
    Unit,
    Versioned,
)
from everlog.stores.sqlite.store import SqliteStore
from everlog.subscriptions.engine import Engine
from everlog.testing.clock import ManualClock

PARTITIONS = 4
LEASE_S = 5.0
DEADLINE_S = 20.0
"""After so long a condition is held to be one that never comes."""

left = Topic("test.left", key="key", partitions=PARTITIONS)
right = Topic("test.right", key="key", partitions=PARTITIONS)
free = Topic("test.free", key=None, partitions=PARTITIONS)
out = Topic("test.out", key="key", partitions=PARTITIONS)


@left.event("test.left/1")
class Left(Event):
    key: str
    n: int = 0


@right.event("test.right/1")
class Right(Event):
    key: str
    n: int = 0


@free.event("test.free/1")
class Free(Event):
    n: int = 0


@out.event("test.out/1")
class Out(Event):
    key: str
    n: int = 0
    by: str = ""


class LastingStore(SqliteStore):
    """A store that stays when the app that uses it ends, and that takes its time: it lets others run before and after each call.

    Args:
        path: Its file; ``None`` in memory.
        clock: The time of leases.
        changed: Set after every commit.
        shaky: Decides how often others run; ``None``: never.
    """

    def __init__(
        self, path: Path | None, *, clock: ManualClock, changed: asyncio.Event, shaky: random.Random | None = None
    ) -> None:
        super().__init__(path, clock=clock, lease_s=LEASE_S)
        self._changed = changed
        self._shaky = shaky
        self.commits: list[tuple[Sequence[Unit], Sequence[Outcome]]] = []
        self.before_commit: Callable[[Sequence[Unit]], Awaitable[None]] | None = None
        self.unfinished_again: list[str] = []
        """What was stored as finished and later as unfinished: a crash would have run it twice."""
        self._stands: dict[tuple[Slot, TopicPartition], tuple[int, Offset, set[Offset]]] = {}
        self.crashed = False
        self._last_epoch = self._void_epoch = 0

    async def _turns(self) -> None:
        if self._shaky is not None:
            for _ in range(self._shaky.choice((0, 0, 1, 2, 5))):
                await asyncio.sleep(0)

    async def read(self, keys: Sequence[StateKey]) -> Sequence[Versioned]:
        await self._turns()
        rows = await super().read(keys)
        await self._turns()
        return rows

    async def scan(self, state: str, prefix: str) -> Sequence[tuple[str, Versioned]]:
        await self._turns()
        rows = await super().scan(state, prefix)
        await self._turns()
        return rows

    async def held(self, slot: Slot, key: str, *, after: int = 0, limit: int = 1) -> Sequence[Held]:
        await self._turns()
        rows = await super().held(slot, key, after=after, limit=limit)
        await self._turns()
        return rows

    async def commit(
        self, units: Sequence[Unit], leases: Sequence[Lease], progress: Sequence[tuple[Slot, Progress]]
    ) -> Sequence[Outcome]:
        if self.before_commit is not None:
            await self.before_commit(units)
        await self._turns()
        outcomes = await super().commit(units, leases, progress)
        await self._turns()
        self.commits.append((units, outcomes))
        self._look_back(units, outcomes, leases, progress)
        self._changed.set()
        return outcomes

    def _look_back(
        self,
        units: Sequence[Unit],
        outcomes: Sequence[Outcome],
        leases: Sequence[Lease],
        progress: Sequence[tuple[Slot, Progress]],
    ) -> None:
        failed = [unit for unit, outcome in zip(units, outcomes, strict=True) if outcome is not Outcome.COMMITTED]
        epochs = {lease.slot: lease.epoch for lease in leases}
        for slot, one in progress:
            epoch, through, unfinished = self._stands.get((slot, one.where), (0, Offset(-1), set[Offset]()))
            if epochs[slot] < epoch or epochs[slot] <= self._void_epoch:
                continue
            put_back = {offset for unit in failed if unit.slot == slot for where, offset in unit.finishes if where == one.where}
            now = {*one.unfinished, *put_back}
            again = {offset for offset in now if offset <= through} - unfinished
            if again or one.through < through:
                self.unfinished_again.append(f"{one.where}: {sorted(again)}, through {through} and then {one.through}")
            self._stands[slot, one.where] = epochs[slot], one.through, {offset for offset in now if offset <= one.through}

    async def aclose(self) -> None:
        if self.crashed:
            self._member = None  # as after a kill: no heartbeat any more, and nothing given back
            self.crashed = False
            await self._write(lambda _: None)  # what was queued happens before the kill, and not when the clock has moved
        else:
            await self.leave()

    async def acquire(self, slot: Slot) -> Lease | None:
        lease = await super().acquire(slot)
        if lease is not None:
            self._last_epoch = max(self._last_epoch, lease.epoch)
        return lease

    async def start_again(self, again: Again, reset: Callable[[Section], Awaitable[None]] | None = None) -> int:
        generation = await super().start_again(again, reset)
        self._void_epoch = self._last_epoch  # what was finished under these is to be done again
        self._stands.clear()
        return generation

    async def really_close(self) -> None:
        await super().aclose()


class World:
    """One app on a log and a store. Make it with the `world` fixture's function, so that all of it is closed."""

    def __init__(
        self,
        app: App[Any],
        log: Log,
        store: LastingStore,
        clock: ManualClock,
        changed: asyncio.Event,
        lend: Callable[[Store], None],
    ) -> None:
        self.app = app
        self.log = log
        self.store = store
        self.clock = clock
        self.changed = changed
        self._lend = lend
        self._run: asyncio.Task[None] | None = None
        self._runtime: AppRuntime | None = None
        self._stop = asyncio.Event()
        self.client = Client(log, source="test", clock=clock)
        self.settings = Settings(log_url="memory:", store_url="sqlite::memory:", lease_s=LEASE_S)

    def now(self, app: App[Any]) -> None:
        """Run another declaration at the next start: newer code."""
        self.app = app

    async def start(self) -> None:
        """Start the app and return when it works."""
        self._stop = asyncio.Event()
        ready = asyncio.Event()
        self._lend(self.store)
        runtime = self._runtime = AppRuntime(self.app.declaration(), self.log, self.settings, self.clock)
        run = self._run = asyncio.create_task(runtime.run(self._stop, lambda _: ready.set()))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait([run, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if run.done():
            self._run = None
            run.result()

    def engines(self) -> Mapping[str, Engine]:
        """Return what runs now, by subscription."""
        assert self._runtime is not None
        return self._runtime._engines

    def begin_stop(self) -> None:
        """Ask for a graceful stop, as SIGTERM does."""
        self._stop.set()

    async def stop(self, *, step_s: float = 0.0) -> None:
        """Stop the app gracefully; whenever nothing happens for a moment, move the clock by `step_s`."""
        self._stop.set()
        if self._run is not None:
            run, self._run = self._run, None
            async with asyncio.timeout(DEADLINE_S):
                while step_s and not (await asyncio.wait([run], timeout=0.002))[0]:
                    self.clock.advance(step_s)
                await run

    async def crash(self) -> None:
        """End the app where it is, and let its lease run out."""
        if self._run is not None:
            run, self._run = self._run, None
            self.store.crashed = True
            run.cancel()
            with suppress(asyncio.CancelledError):
                await run
        self.clock.advance(2 * LEASE_S)

    @property
    def has_ended(self) -> bool:
        """The app ended by itself."""
        return self._run is not None and self._run.done()

    async def until(self, condition: Callable[[], bool], *, step_s: float = 0.0) -> None:
        """Wait until something holds; whenever nothing happens for a moment, move the clock by `step_s`."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                if self._run is not None and self._run.done():
                    self._run.result()
                    raise AssertionError("the app has ended")
                self.changed.clear()
                try:
                    async with asyncio.timeout(0.002):
                        await self.changed.wait()
                except TimeoutError:
                    if step_s:
                        self.clock.advance(step_s)

    async def settle(self, *, step_s: float = 0.0) -> None:
        """Wait until every event is finished, nothing waits for a retry, and the outbox is empty; parked keys stay."""
        heads = {}
        while True:
            status = await self.store.status()
            heads = {
                where: offset
                for topic in await self.log.topics()
                for where, offset in (await self.log.head(topic.name)).offsets.items()
            }
            if _is_settled(status, heads):
                return
            fired = asyncio.get_running_loop().time()
            assert fired - self._settling_since() < DEADLINE_S, f"never settles: {status}"
            await self.tick(step_s)

    _since: float | None = None

    def _settling_since(self) -> float:
        if self._since is None:
            self._since = asyncio.get_running_loop().time()
        return self._since

    async def tick(self, step_s: float = 0.0) -> None:
        """Let the app work until it commits something, at most for a moment; then move the clock."""
        if self._run is not None and self._run.done():
            self._run.result()
            raise AssertionError("the app has ended")
        self.changed.clear()
        try:
            async with asyncio.timeout(0.002):
                await self.changed.wait()
        except TimeoutError:
            if step_s:
                self.clock.advance(step_s)

    async def records(self, *topics: Topic) -> list[StoredRecord]:
        """Return all records of topics, each partition's in order."""
        found: list[StoredRecord] = []
        for topic in topics:
            head = (await self.log.head(topic.name)).offsets
            for where, last in head.items():
                if last < 0:
                    continue
                reader = self.log.reader({where: BEGINNING})
                through = Offset(-1)
                while through < last:
                    batch = await reader.next()
                    for chunk in batch.chunks:
                        found.extend(chunk.record(index) for index in range(chunk.start, chunk.length))
                    through = batch.through[where]
                reader.close()
        return found

    async def events(self, cls: type[Any]) -> list[Any]:
        """Return all events of one type, each partition's in order."""
        contract = contract_of(cls)
        return [contract.decode(record.data) for record in await self.records(contract.topic) if record.type == contract.name]

    async def append_raw(self, topic: Topic, type_name: str, data: bytes, key: str) -> None:
        """Append a record as a stranger would: unchecked."""
        await self.log.ensure_topic(topic.spec())
        await self.log.append(topic.name, [NewRecord(type_name, data, key, partition_of(key, topic.partitions), "stranger", 1)])

    async def rows(self, state: str) -> Mapping[str, bytes]:
        """Return the committed rows of a state."""
        return {key: row.value for key, row in await SqliteStore.scan(self.store, state, "[]") if row.value is not None}

    async def unfinished(self) -> int:
        """Return how many records are neither finished nor held."""
        status = await self.store.status()
        heads = {
            where: offset
            for topic in await self.log.topics()
            for where, offset in (await self.log.head(topic.name)).offsets.items()
        }
        return sum(
            heads[one.where] - one.through + len(one.unfinished)
            for subscription in status.subscriptions
            for one in subscription.progress
        )

    async def aclose(self) -> None:
        """End it however it stands, and let go of everything."""
        await self.crash()
        await self.store.really_close()
        await self.log.aclose()


def _is_settled(status: StoreStatus, heads: Mapping[TopicPartition, Offset]) -> bool:
    for subscription in status.subscriptions:
        if subscription.blocked_keys or any(one.unfinished or one.through < heads[one.where] for one in subscription.progress):
            return False
    return status.outbox == status.outbox_parked


Make = Callable[..., Awaitable[World]]


async def make_world(
    app: App[Any],
    monkeypatch: pytest.MonkeyPatch,
    *,
    folder: Path | None = None,
    shaky: random.Random | None = None,
    log: Log | None = None,
    room: Room | None = None,
) -> World:
    """Return a world; in files where `folder` is given. `room`: how much a subscription may hold; ``None`` as in earnest."""
    clock = ManualClock()
    changed = asyncio.Event()
    store = LastingStore(folder / "store.db" if folder is not None else None, clock=clock, changed=changed, shaky=shaky)
    await store.open()
    if log is None:
        log = MemoryLog(clock) if folder is None else await open_log(f"sqlite:{folder / 'log.db'}", clock=clock)
    lent: list[Store] = []

    async def lend(settings: Settings, name: str, *, clock: object) -> Store:
        return lent[-1]

    monkeypatch.setattr("everlog.runtime.open_store", lend)
    if room is not None:
        monkeypatch.setattr("everlog.runtime.Engine", partial(Engine, room=room))
    return World(app, log, store, clock, changed, lent.append)
