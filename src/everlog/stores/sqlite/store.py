"""A store in one SQLite file, or in memory: the asynchronous face of the functions beside this file.

Writes go through the file's writer thread, which runs each as a job inside the transaction of its group; reads are short and run on
the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar, cast
from uuid import UUID

import apsw
import msgspec

from everlog.clock import Clock
from everlog.drivers.members import Membership
from everlog.drivers.process import Deaths, this_process
from everlog.drivers.sqlite.database import Database, Group, NothingStored, OutcomeUnknown
from everlog.drivers.sqlite.rows import rows_of
from everlog.errors import Closed, EverlogError, FeatureMissing, FileDamaged, StoreError, StoreReadOnly
from everlog.position import Offset, TopicPartition
from everlog.rules.names import Names
from everlog.store import (
    RELAY,
    Again,
    AppSpec,
    Attempt,
    Emitted,
    Held,
    HeldKey,
    Incarnation,
    Joined,
    Landmark,
    Lease,
    OutboxRow,
    Outcome,
    ParkedKey,
    Progress,
    Registered,
    Request,
    Section,
    Skipped,
    Slot,
    SlotState,
    StateKey,
    Store,
    StoreFeatures,
    StoreStatus,
    SubscriptionStatus,
    Survey,
    Unit,
    Versioned,
)
from everlog.stores.sqlite import held, leases, outbox, register, rows
from everlog.stores.sqlite.again import collect, has_former, muted_of, start_again
from everlog.stores.sqlite.check import problems
from everlog.stores.sqlite.commit import commit
from everlog.stores.sqlite.names import names
from everlog.stores.sqlite.section import SqliteSection
from everlog.stores.sqlite.tables import STORE

T = TypeVar("T")

_ALL: Final = -1  # as SQLite's LIMIT
_RESET_S: Final = 60.0
"""How long an app may take to empty its own tables before a replay."""
_SMALL_BYTES: Final = 512
"""About what a job writes that is not a commit of units."""
_decode_offsets: Final = msgspec.msgpack.Decoder(list[Offset]).decode


class Job(NamedTuple):
    """What the writer thread runs inside a group's transaction. A job that raises one of our errors has changed nothing."""

    run: Callable[[apsw.Connection], object]
    size: int
    is_alone: bool = False
    """It has a transaction of its own: a section, which may take others' down with it."""


async def open_store(url: str, *, clock: Clock, lease_s: float = 5.0) -> Store:
    """Open the store of an app; its file and folder are made where they are missing.

    Args:
        url: `sqlite:PATH`, relative to the current folder, or `sqlite::memory:`, which is a new store each time.
        clock: The time of leases and due records.
        lease_s: For how long a member may be silent before others take its slots.

    Raises:
        FileError: The file is strange, newer or damaged, or its place cannot hold it. It was not touched.
    """
    scheme, _, place = url.partition(":")
    if scheme != "sqlite" or not place:
        raise ValueError(f"expected the URL sqlite:PATH or sqlite::memory:, found {url!r}")
    store = SqliteStore(None if place == ":memory:" else Path(place), clock=clock, lease_s=lease_s)
    await store.open()
    return store


class SqliteStore:
    """A `Store` in one file that processes of one machine share, or in memory for one event loop."""

    def __init__(self, path: Path | None, *, clock: Clock, lease_s: float) -> None:
        if path is not None:
            path = path.resolve()  # all names of one file find the same turn and the same bell beside it
        self._database: Database[Job, object] = Database(
            path,
            STORE,
            _apply,
            size_of=lambda job: job.size,
            wall_us=clock.wall_us,
            tick=self._heartbeat,
            tick_s=lease_s / 3,
            is_alone=lambda job: job.is_alone,
        )
        self._clock = clock
        self._lease_s = lease_s
        self._process = this_process()
        self._member: Membership | None = None
        self._alive_s = 0.0
        self._turned_s = 0.0
        self._strokes = 0
        # What another process changes of these fences whoever read by the old ones.
        self._names: Names | None = None
        self._deaths: Deaths
        self.identity: UUID
        self.incarnation: int
        self.features: StoreFeatures = StoreFeatures(
            durability="memory" if path is None else "fsync",
            sql=True,
            within=False,
            shared=path is not None,
            backup=path is not None,
        )

    async def open(self) -> None:
        """Open the file. Raises as `open_store`."""
        await self._database.open()
        self._deaths = Deaths(self._database.bell.wake)
        try:
            with self._database.reading() as connection:
                ((identity, self.incarnation),) = rows_of(connection, "SELECT identity, incarnation FROM meta")
        except BaseException:
            self._deaths.close()
            await self._database.aclose()
            raise
        self.identity = UUID(bytes=identity, version=4)

    def measure(self, told: Callable[[float], None]) -> None:
        """Tell of each commit from now on, as `everlog.observe.meters.Measured` says."""
        self._database.told = told

    # ---- names ----

    async def register(self, app: AppSpec, *, log: UUID, accept: Container[str] = ()) -> Registered:
        self._names = None
        return await self._write(lambda connection: register.register(connection, app, log, accept, self._now()))

    async def retire(self, subscription: str) -> None:
        await self._write(lambda connection: register.retire(connection, subscription, self._now()))

    async def begin(self, subscription: str, progress: Sequence[Progress]) -> None:
        await self._write(lambda connection: register.begin(connection, subscription, progress))

    # ---- members and leases ----

    async def join(self, subscriptions: Mapping[str, Sequence[str]], *, alive_s: float) -> Joined:
        if self._member is not None:
            raise StoreError(f"this process is member {self._member.number} already: leave before you join again")
        self._alive_s = alive_s
        self.turned()
        joined = await self._write(lambda connection: leases.join(connection, self._process, subscriptions, self._now()))
        self._member = Membership(joined.member, self._process, subscriptions)
        return joined

    async def pause(self, subscription: str, reason: str | None) -> None:
        member = self._member
        if member is None:
            raise StoreError(f"only a member pauses {subscription!r}: join first")
        paused = {name: why for name, why in member.paused.items() if name != subscription}
        if reason is not None:
            paused[subscription] = reason
        self._member = member = replace(member, paused=paused)
        await self._write(lambda connection: leases.beat(connection, member, self._now()))

    def turned(self) -> None:
        self._turned_s = self._clock.monotonic_s()

    async def leave(self) -> None:
        member, self._member = self._member, None  # no heartbeat behind it
        if member is not None:
            await self._write(lambda connection: leases.leave(connection, member.number))

    async def survey(self, subscription: str) -> Survey:
        with self._snapshot() as connection:
            self._deaths.watch(leases.processes(connection), seen_from=self._process)
            return leases.survey(connection, subscription, self._member, self._now())

    async def acquire(self, slot: Slot) -> Lease | None:
        member = self._member
        if member is None:
            raise StoreError(f"only a member takes slot {slot.number} of {slot.subscription!r}: join first")
        with self._snapshot() as connection:
            taken = leases.taken(connection, slot, member, self._now())
        if taken is not None:
            return taken.lease  # without a commit, whose bell would wake all who wait for the slot
        return await self._write(lambda connection: leases.acquire(connection, slot, member, self._now()))

    async def release(self, lease: Lease) -> None:
        await self._write(lambda connection: leases.release(connection, lease))

    def _heartbeat(self) -> Job | None:
        """Return the member's sign of life, while the event loop turns. Called in the writer thread."""
        member = self._member
        if member is None or self._clock.monotonic_s() - self._turned_s > self._alive_s:
            return None
        now = self._now()  # not when it is written: the process may be stopped in between

        def beat(connection: apsw.Connection) -> None:
            if self._member is not None:  # it may have left since this was queued
                leases.beat(connection, self._member, now)

        return Job(beat, _SMALL_BYTES)

    def _now(self) -> leases.Now:
        return leases.Now(self._clock.monotonic_s(), self._lease_s, self._process)

    # ---- what handlers see and change ----

    async def load(self, lease: Lease) -> SlotState:
        with self._snapshot() as connection:
            leases.check(connection, lease, lease.slot)
            self._names = None  # a replay may have begun since the last slot was taken
            if lease.slot == RELAY:
                return SlotState((), ())
            progress = progress_of(connection, lease.slot.subscription, lease.slot.number)
            name, number = lease.slot
            return SlotState(
                progress,
                held.keys(connection, lease.slot, None, _ALL),
                leases.attempted(connection, lease.slot),
                names(connection).generation(name),
                muted_of(connection, name, number),
            )

    async def attempt(self, lease: Lease, attempt: Attempt | None) -> None:
        await self._write(lambda connection: leases.attempt(connection, lease, attempt))

    def accuse(self, lease: Lease, attempt: Attempt, *, within_s: float) -> bool:
        def accused(connection: apsw.Connection) -> None:
            leases.attempt(connection, lease, attempt)

        return self._database.do(Job(accused, _SMALL_BYTES), within_s)

    async def section(self) -> SqliteSection:
        self._names = None  # its conflicts do not come by `commit`
        section = SqliteSection(self._database.waiting, self._clock.wall_us)
        section.begin(self._write(section.serve, is_alone=True))
        await section.opened()
        return section

    async def read(self, keys: Sequence[StateKey]) -> Sequence[Versioned]:
        # One statement is of one moment by itself; several are put into one transaction.
        with self._database.reading() if len(keys) == 1 else self._snapshot() as connection:
            known = self._names = self._names or names(connection)
            return rows.read(connection, known, keys)

    async def scan(self, state: str, prefix: str) -> Sequence[tuple[str, Versioned]]:
        with self._snapshot() as connection:
            return rows.scan(connection, names(connection), state, prefix)

    async def commit(
        self, units: Sequence[Unit], leases: Sequence[Lease], progress: Sequence[tuple[Slot, Progress]]
    ) -> Sequence[Outcome]:
        size = _SMALL_BYTES + sum(unit.size for unit in units)
        outcomes = await self._write(
            lambda connection: commit(connection, units, leases, progress, now_us=self._clock.wall_us()), size=size
        )
        if Outcome.CONFLICT in outcomes:
            self._names = None  # perhaps what it read belongs to a generation that a replay has ended
        return outcomes

    # ---- held records ----

    async def held(self, slot: Slot, key: str, *, after: int = 0, limit: int = 1) -> Sequence[Held]:
        with self._database.reading() as connection:
            return held.queue(connection, slot, key, after, limit)

    async def due(self, slot: Slot, *, after: str = "", limit: int = 1_000) -> Sequence[HeldKey]:
        with self._database.reading() as connection:
            return held.keys(connection, slot, after or None, limit)

    async def parked(
        self,
        subscription: str | None = None,
        *,
        after: int = 0,
        limit: int = 1_000,
        key: str | None = None,
        type: str | None = None,  # noqa: A002 as the port has it
        error: str | None = None,
    ) -> Sequence[ParkedKey]:
        with self._database.reading() as connection:
            return held.first_of_each(connection, subscription, after, limit, key=key, type_name=type, error=error)

    async def request(
        self,
        subscription: str,
        key: str | None,
        action: Literal["redrive", "skip"],
        *,
        type: str | None = None,  # noqa: A002 as the port has it
        error: str | None = None,
        among: Sequence[int] | None = None,
    ) -> int:
        return await self._write(
            lambda connection: held.request(connection, subscription, key, action, type_name=type, error=error, among=among)
        )

    async def requests(self, slots: Sequence[Slot]) -> Sequence[Request]:
        with self._snapshot() as connection:
            return held.requests(connection, slots)

    async def answer(self, lease: Lease, request: Request) -> None:
        await self._write(lambda connection: held.answer(connection, lease, request, self._clock.wall_us()))

    async def skipped(self, subscription: str | None = None, *, after: int = 0, limit: int = 1_000) -> Sequence[Skipped]:
        with self._database.reading() as connection:
            return held.skipped(connection, subscription, after, limit)

    async def forget_skipped(self, subscription: str | None, *, through: int) -> int:
        return await self._write(lambda connection: held.forget_skipped(connection, subscription, through))

    # ---- outbox ----

    async def outbox(self, *, after: int, limit: int) -> Sequence[OutboxRow]:
        with self._database.reading() as connection:
            return outbox.waiting(connection, after, limit)

    async def stage(self, connection: object, emits: Sequence[Emitted]) -> None:
        self.stage_blocking(connection, emits)

    def stage_blocking(self, connection: object, emits: Sequence[Emitted]) -> None:  # noqa: ARG002 the port asks for them
        raise FeatureMissing(
            "publishing in a transaction of your own",
            adapter="the SQLite store",
            instead="use a store in the PostgreSQL database that your rows are in, or publish after your commit",
        )

    async def number(self, lease: Lease, rows: Sequence[int], *, done: Sequence[int] = ()) -> Sequence[OutboxRow]:
        return await self._write(lambda connection: outbox.number(connection, lease, rows, done))

    async def refuse(self, lease: Lease, row: int, error: str) -> None:
        await self._write(lambda connection: outbox.refuse(connection, lease, row, error))

    async def issued(self) -> Mapping[TopicPartition, int]:
        with self._database.reading() as connection:
            return outbox.issued(connection)

    async def acknowledged(self) -> Mapping[TopicPartition, int]:
        with self._snapshot() as connection:
            return outbox.acknowledged(connection)

    # ---- one history with the log ----

    async def landmarks(self) -> Sequence[Landmark]:
        with self._database.reading() as connection:
            return register.landmarks(connection)

    async def keep_landmarks(self, landmarks: Sequence[Landmark]) -> None:
        await self._write(lambda connection: register.keep_landmarks(connection, landmarks))

    async def sent_before(self) -> Sequence[tuple[str, str]]:
        with self._database.reading() as connection:
            return outbox.sent_before(connection)

    async def reincarnate(self, new: Incarnation) -> None:
        self._names = None
        await self._write(lambda connection: register.reincarnate(connection, new, self._now()))
        self.incarnation = new.number

    # ---- once more ----

    async def start_again(self, again: Again, reset: Callable[[Section], Awaitable[None]] | None = None) -> int:
        self._names = None
        if reset is None:
            return await self._write(lambda connection: start_again(connection, again))
        section = await self.section()
        try:
            await section.mark(within_s=_RESET_S)
            await reset(section)
            generation = await section.do(lambda connection: start_again(connection, again))
            await section.keep()
            await section.commit()
        finally:
            await section.roll_back()
        return generation

    async def collect(self, *, limit: int = 1_000) -> int:
        with self._database.reading() as connection:
            if not has_former(connection):  # as nearly always: no commit for nothing
                return 0
        return await self._write(lambda connection: collect(connection, limit))

    # ---- the whole ----

    async def status(self) -> StoreStatus:
        with self._snapshot() as connection:
            ((app, log),) = rows_of(connection, "SELECT app, log FROM meta")
            subscriptions: list[SubscriptionStatus] = []
            for name, generation, types, origin in rows_of(
                connection, "SELECT name, generation, types, origin FROM subscription ORDER BY name"
            ):
                progress, paused = progress_of(connection, name), leases.pauses(connection, name, self._now())
                blocked, parked, records, size = held.counts(connection, name)
                subscriptions.append(
                    SubscriptionStatus(
                        name,
                        generation,
                        progress,
                        blocked,
                        parked,
                        records,
                        paused=paused,
                        held_bytes=size,
                        origin=origin,
                        types=msgspec.json.decode(types),
                    )
                )
            return StoreStatus(app or "", UUID(bytes=log) if log is not None else None, subscriptions, *outbox.counts(connection))

    async def wait(self, seconds: float) -> None:
        # Strokes are counted from when the last `wait` returned, so that nothing between two waits is missed. One task waits.
        bell = self._database.bell
        if bell.strokes == self._strokes:
            stroke = asyncio.ensure_future(bell.wait(self._strokes))
            passed = asyncio.ensure_future(self._clock.sleep(seconds))
            try:
                await asyncio.wait((stroke, passed), return_when=asyncio.FIRST_COMPLETED)
            finally:
                stroke.cancel()
                passed.cancel()
        self._strokes = bell.strokes

    async def verify(self) -> Sequence[str]:
        try:
            with self._snapshot() as connection:
                return problems(connection)
        except FileDamaged as error:  # a page that cannot be read at all
            return [str(error)]

    async def backup(self, target: Path, *, progress: Callable[[int, int], None] | None = None, check: bool = True) -> None:
        await self._database.back_up(target, progress=progress, check=check)

    async def aclose(self) -> None:
        try:
            with suppress(StoreError, Closed):  # no room to leave, or a fork of who joined: the lease passes by itself
                await self.leave()
        finally:
            self._deaths.close()
            await self._database.aclose()

    async def _write(self, run: Callable[[apsw.Connection], T], *, size: int = _SMALL_BYTES, is_alone: bool = False) -> T:
        """Run a job in the writer thread and return what it returned.

        Raises:
            StoreReadOnly: It was not committed, and never will be.
            StoreError: Nobody can say whether it was committed.
            EverlogError: What the job refused; it changed nothing.
        """
        try:
            return cast("T", await self._database.submit(Job(run, size, is_alone)))
        except NothingStored as error:
            raise StoreReadOnly(
                f"the store could not be written ({error}): nothing was stored; make room or give permission"
            ) from error
        except OutcomeUnknown as error:
            raise StoreError(f"the commit failed ({error}): whether it is stored shows when the slots are taken anew") from error

    @contextmanager
    def _snapshot(self) -> Generator[apsw.Connection]:
        """Lend the reading connection for several reads of one moment."""
        with self._database.reading() as connection:
            is_inside = (
                connection.in_transaction
            )  # a section's, in memory, where there is but one connection: nobody else commits now
            if is_inside:
                yield connection
                return
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                if connection.in_transaction:  # some errors have ended it
                    connection.execute("ROLLBACK")


def _apply(group: Group, jobs: Sequence[Job]) -> Sequence[object]:
    results: list[object] = []
    for job in jobs:
        try:
            results.append(job.run(group.connection))
        except EverlogError as error:
            results.append(error)
    return results


def progress_of(connection: apsw.Connection, subscription: str, partition: int | None = None) -> Sequence[Progress]:
    """Return the progress of a subscription in its generation of today; in one partition of all topics, or in all."""
    rows: list[Any] = rows_of(
        connection,
        "SELECT topic, partition, through, unfinished, dedupe FROM progress WHERE subscription = ?1 AND generation = ?2 "
        "AND (?3 IS NULL OR partition = ?3) ORDER BY topic, partition",
        (subscription, names(connection).generation(subscription), partition),
    )
    return [
        Progress(TopicPartition(topic, number), Offset(through), _decode_offsets(unfinished), dedupe)
        for topic, number, through, unfinished, dedupe in rows
    ]
