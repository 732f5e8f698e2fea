"""What every case of the store's suite works with: a store under test, an app, and workers that make units."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar
from uuid import UUID

import msgspec

from everlog.conformance.cases import Broken, MovableClock, same
from everlog.position import Offset, TopicPartition
from everlog.record import NewRecord, StoredRecord
from everlog.store import (
    AppSpec,
    Cause,
    Emitted,
    Hold,
    Joined,
    Lease,
    Outcome,
    Progress,
    Slot,
    StateKey,
    Store,
    SubscriptionSpec,
    Unit,
    Versioned,
    Write,
)

TOPIC: Final = "conformance.orders"
OTHER_TOPIC: Final = "conformance.payments"
STOCK: Final = "conformance-stock"
"""The subscription that the cases work on."""
MAIL: Final = "conformance-mail"
"""Another one of the same app."""
STATE: Final = "stock/1"
MAIL_STATE: Final = "mail/1"
TYPES: Final[Mapping[str, Sequence[str]]] = {TOPIC: ["conformance.placed/1"]}
APP: Final = AppSpec("conformance", [SubscriptionSpec(STOCK, TYPES, [STATE]), SubscriptionSpec(MAIL, TYPES, [MAIL_STATE])])
LOG: Final = UUID("6ba7b810-9dad-41d1-80b4-00c04fd430c8")
OTHER_LOG: Final = UUID("6ba7b811-9dad-41d1-80b4-00c04fd430c8")
SLOT: Final = Slot(STOCK, 0)
NEXT_SLOT: Final = Slot(STOCK, 1)
HERE: Final = TopicPartition(TOPIC, 0)

_AT_ONCE_S: Final = 3.0
"""Real seconds: less than the backstop with which a store may look again by itself."""

T = TypeVar("T")


class StoreUnderTest(Protocol):
    """One store of its own for each case. Who makes it closes what was opened, and deletes it."""

    @property
    def clock(self) -> MovableClock:
        """The clock that every handle of the store was given."""
        ...

    @property
    def lease_s(self) -> float:
        """The lease that every handle was opened with: short, since one case keeps the event loop busy for as long."""
        ...

    async def open(self) -> Store:
        """Open the store: again after it was closed, or as another handle of it where `features.shared`.

        A store without durability is a new one each time.
        """
        ...


@dataclass
class Worker:
    """A member of a store, with its leases and the versions of its units."""

    store: Store
    joined: Joined
    leases: dict[Slot, Lease] = field(default_factory=dict[Slot, Lease])
    _made: int = 0

    async def take(self, slot: Slot) -> Lease:
        """Acquire a slot that is free."""
        lease = await self.store.acquire(slot)
        if lease is None:
            raise Broken(f"expected {slot} to be free, and another owns it")
        self.leases[slot] = lease
        return lease

    def unit(self, lane: str | None = None, *, slot: Slot = SLOT, **changes: Any) -> Unit:
        """Return a unit with a version of its own."""
        self._made += 1
        return Unit(slot=slot, lane=lane, version=self.joined.version_base + self._made, **changes)

    def writing(self, writes: Mapping[str, Write], lane: str | None = None, **changes: Any) -> Unit:
        """Return a unit that writes rows of `STATE`."""
        return self.unit(lane, writes={(STATE, key): write for key, write in writes.items()}, **changes)

    async def commit(self, *units: Unit, progress: Sequence[Progress] = ()) -> list[Outcome]:
        """Commit with every lease held; the progress is that of `SLOT`."""
        return list(await self.store.commit(units, list(self.leases.values()), [(SLOT, at) for at in progress]))

    async def committed(self, *units: Unit, progress: Sequence[Progress] = ()) -> None:
        """Commit what has to be applied."""
        same(await self.commit(*units, progress=progress), [Outcome.COMMITTED] * len(units), "the outcomes")


@asynccontextmanager
async def opened(harness: StoreUnderTest, *, app: AppSpec = APP) -> AsyncGenerator[Store]:
    """Open the store, register the suite's app, and close it."""
    store = await harness.open()
    try:
        await store.register(app, log=LOG)
        yield store
    finally:
        await store.aclose()


@asynccontextmanager
async def at_work(harness: StoreUnderTest, *slots: Slot, alive_s: float = 3_600.0) -> AsyncGenerator[Worker]:
    """Open the store as a member that handles both subscriptions and owns `slots`."""
    async with opened(harness) as store:
        worker = Worker(store, await store.join({STOCK: [], MAIL: []}, alive_s=alive_s))
        for slot in slots:
            await worker.take(slot)
        yield worker


def fall_silent(harness: StoreUnderTest) -> None:
    """Let a lease pass in which no member turned: those with an `alive_s` below it are taken for gone."""
    harness.clock.advance(harness.lease_s * 1.5)


async def at_once(awaitable: Awaitable[T], promise: str) -> T:
    """Return what `awaitable` gives.

    Raises:
        Broken: It gave nothing for a time in which only a bell can have woken it.
    """
    try:
        async with asyncio.timeout(_AT_ONCE_S):
            return await awaitable
    except TimeoutError as error:
        raise Broken(f"{promise}; nothing came for {_AT_ONCE_S:g} s") from error


async def let_others_run() -> None:
    """Let the other tasks come to where they wait."""
    for _ in range(10):
        await asyncio.sleep(0)


def emitted(number: int, *, topic: str = TOPIC, key: str | None = "k", partition: int = 0) -> Emitted:
    """Return an event for the outbox that its `number` tells apart."""
    return Emitted(topic, NewRecord("conformance.placed/1", b'{"n":%d}' % number, key, partition, "conformance", number))


def stored(offset: int, key: str | None = "k") -> StoredRecord:
    """Return a record as a log would give it."""
    return StoredRecord(
        topic=TOPIC, partition=0, offset=Offset(offset), id=f"id-{offset}", type="conformance.placed/1", data=b'{"n":%d}' % offset,
        key=key, source="conformance", time_us=offset, logged_at_us=offset + 1, headers={"traceparent": "00-1-2-03"}, schema=2**63,
        producer="p", sequence=offset,
    )  # fmt: skip


def failed(offset: int, key: str = "k", *, attempts: int = 1, next_attempt_us: int | None = None) -> Hold:
    """Return the copy of a record whose handler failed; parked, unless it has a next attempt."""
    return Hold(key, stored(offset, key), Cause.FAILED, attempts, "ValueError: no", "Traceback …", next_attempt_us)


def behind(offset: int, key: str = "k") -> Hold:
    """Return the copy of a record whose key is held already."""
    return Hold(key, stored(offset, key), Cause.BEHIND, 0, "", "", None)


def progress(through: int, unfinished: Sequence[int] = (), *, topic: str = TOPIC, partition: int = 0) -> Progress:
    """Return the progress of one partition."""
    return Progress(TopicPartition(topic, partition), Offset(through), [Offset(offset) for offset in unfinished])


def finished(*offsets: int) -> list[tuple[TopicPartition, Offset]]:
    """Return records that a unit finishes, in the one partition of `SLOT`."""
    return [(HERE, Offset(offset)) for offset in offsets]


def number(value: int) -> bytes:
    """Return the JSON of a number."""
    return msgspec.json.encode(value)


async def value_of(store: Store, key: str, state: str = STATE) -> object:
    """Return what a committed row holds, decoded; ``None`` for an absent one."""
    (row,) = await store.read([(state, key)])
    return None if row.value is None else msgspec.json.decode(row.value)


async def version_of(store: Store, key: StateKey) -> int:
    """Return the version of a committed row."""
    (row,) = await store.read([key])
    return row.version


def rows_of(found: Sequence[tuple[str, Versioned]]) -> tuple[tuple[str, int], ...]:
    """Return what a scan saw, as a unit carries it."""
    return tuple((key, row.version) for key, row in found)


async def numbers_in_outbox(store: Store, *, after: int = 0) -> list[int]:
    """Return the numbers of the events that the relay is shown."""
    return [row.emitted.record.time_us for row in await store.outbox(after=after, limit=1_000)]


async def held_offsets(store: Store, key: str = "k", slot: Slot = SLOT) -> list[int]:
    """Return the offsets of a key's held records, in their order."""
    return [held.record.offset for held in await store.held(slot, key, limit=1_000)]
