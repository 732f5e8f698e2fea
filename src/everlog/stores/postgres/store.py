"""A store in a schema of a PostgreSQL database: the asynchronous face of the functions beside this file.

Who changes the store has the turn (`LOCK TABLE turn`) until its transaction ends, so commits come one after another, as in a file: what a unit
is judged by stays true until it is committed, rows of the outbox are in the order of commits, and nobody waits for somebody who waits for him.
Reading goes on meanwhile. A group of units is one transaction of a few statements, so the turn is short.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal, TypeVar
from uuid import UUID

import msgspec
import psycopg

from everlog.clock import Clock
from everlog.drivers.members import Membership
from everlog.drivers.postgres.database import Connection, Database, NothingStored, NotRead, OutcomeUnknown
from everlog.drivers.postgres.guest import Staging
from everlog.drivers.postgres.place import Place, place_of
from everlog.drivers.process import Deaths, this_process
from everlog.errors import Closed, FeatureMissing, StoreError, StoreReadOnly, StoreUnreachable
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
from everlog.stores.postgres import held, leases, outbox, register
from everlog.stores.postgres import state as stored
from everlog.stores.postgres.again import collect, has_former, muted_of, start_again
from everlog.stores.postgres.check import problems
from everlog.stores.postgres.commit import commit
from everlog.stores.postgres.names import names
from everlog.stores.postgres.pulse import Pulse
from everlog.stores.postgres.rows import rows_of
from everlog.stores.postgres.section import PostgresSection
from everlog.stores.postgres.tables import STORE, TURN

T = TypeVar("T")

SCHEMA: Final = "everlog_store"
"""The schema of a store whose URL names none."""
_FEATURES: Final = StoreFeatures(durability="fsync", sql=True, within=True, shared=True, backup=False)
_RESET_S: Final = 60.0
"""How long an app may take to empty its own tables before a replay."""
_decode_offsets: Final = msgspec.msgpack.Decoder(list[Offset]).decode


async def open_store(url: str, *, clock: Clock, lease_s: float = 5.0) -> Store:
    """Open the store of an app; its schema is made where it is missing.

    Args:
        url: `postgresql://…/DATABASE?schema=NAME`.
        clock: The time of due records. That of leases is the server's.
        lease_s: For how long a member may be silent before others take its slots.

    Raises:
        StartRefused: The URL cannot be read, the server does not let us in, or the schema is not one that this can use.
        StoreUnreachable: The server does not answer.
    """
    store = PostgresStore(place_of(url, schema=SCHEMA), clock=clock, lease_s=lease_s)
    await store.open()
    return store


class PostgresStore:
    """A `Store` in one schema, that processes of any machine share."""

    def __init__(self, place: Place, *, clock: Clock, lease_s: float) -> None:
        self._database = Database(place, STORE)
        self._turn = asyncio.Lock()
        self._reading = stored.Reading(self._look_up)
        self._pulse = Pulse(place.conninfo, self._database.prepare, lease_s / 3, self._heartbeat)
        self._clock = clock
        self._lease_s = lease_s
        self._process = this_process()
        self._here = leases.Here(round(lease_s * 1_000_000), self._process)
        self._member: Membership | None = None
        self._alive_s = 0.0
        self._turned_s = 0.0
        self._strokes = 0
        # What another process changes of these fences whoever read by the old ones.
        self._names: Names | None = None
        self._deaths: Deaths
        self._staging: Staging
        self.identity: UUID
        self.incarnation: int
        self.features: StoreFeatures = _FEATURES

    async def open(self) -> None:
        """Connect. Raises as `open_store`."""
        await self._database.open()
        self._deaths = Deaths(self._database.bell.wake)
        try:
            ((self.identity, self.incarnation),) = await self._read(
                lambda connection: rows_of(connection, "SELECT identity, incarnation FROM service")
            )
        except BaseException:
            self._deaths.close()
            await self._database.aclose()
            raise
        place = self._database.place
        self._staging = Staging(place.schema, place.channel, self.identity, place.shown)

    def measure(self, told: Callable[[float], None]) -> None:
        """Tell of each commit from now on, as `everlog.observe.meters.Measured` says."""
        self._database.told = told

    # ---- names ----

    async def register(self, app: AppSpec, *, log: UUID, accept: Container[str] = ()) -> Registered:
        self._names = None
        return await self._write(lambda connection: register.register(connection, app, log, accept, self._here))

    async def retire(self, subscription: str) -> None:
        await self._write(lambda connection: register.retire(connection, subscription, self._here))

    async def begin(self, subscription: str, progress: Sequence[Progress]) -> None:
        await self._write(lambda connection: register.begin(connection, subscription, progress))

    # ---- members and leases ----

    async def join(self, subscriptions: Mapping[str, Sequence[str]], *, alive_s: float) -> Joined:
        if self._member is not None:
            raise StoreError(f"this process is member {self._member.number} already: leave before you join again")
        self._alive_s = alive_s
        self.turned()
        joined = await self._write(lambda connection: leases.join(connection, self._process, subscriptions, self._here))
        self._member = Membership(joined.member, self._process, subscriptions)
        self._pulse.start()
        return joined

    async def pause(self, subscription: str, reason: str | None) -> None:
        member = self._member
        if member is None:
            raise StoreError(f"only a member pauses {subscription!r}: join first")
        paused = {name: why for name, why in member.paused.items() if name != subscription}
        if reason is not None:
            paused[subscription] = reason
        self._member = member = replace(member, paused=paused)
        await self._write(lambda connection: leases.beat(connection, member))

    def turned(self) -> None:
        self._turned_s = self._clock.monotonic_s()

    async def leave(self) -> None:
        member, self._member = self._member, None  # no heartbeat behind it
        if member is not None:
            await self._write(lambda connection: leases.leave(connection, member.number))

    async def survey(self, subscription: str) -> Survey:
        async def surveyed(connection: Connection) -> Survey:
            self._deaths.watch(await leases.processes(connection), seen_from=self._process)
            return await leases.survey(connection, subscription, self._member, self._here)

        return await self._read(surveyed, is_one_moment=True)

    async def acquire(self, slot: Slot) -> Lease | None:
        member = self._member
        if member is None:
            raise StoreError(f"only a member takes slot {slot.number} of {slot.subscription!r}: join first")
        taken = await self._read(lambda connection: leases.taken(connection, slot, member, self._here))
        if taken is not None:
            return taken.lease  # without a commit, whose bell would wake all who wait for the slot
        return await self._write(lambda connection: leases.acquire(connection, slot, member, self._here))

    async def release(self, lease: Lease) -> None:
        await self._write(lambda connection: leases.release(connection, lease))

    def _heartbeat(self) -> tuple[Any, tuple[object, ...]] | None:
        """Return the member's sign of life, while the event loop turns. Called in the thread of the pulse."""
        member = self._member
        if member is None or self._clock.monotonic_s() - self._turned_s > self._alive_s:
            return None
        return leases.BEAT, leases.beat_values(member)

    # ---- what handlers see and change ----

    async def load(self, lease: Lease) -> SlotState:
        async def loaded(connection: Connection) -> SlotState:
            await leases.check(connection, lease, lease.slot)
            if lease.slot == RELAY:
                return SlotState((), ())
            name, number = lease.slot
            known = await names(connection)
            return SlotState(
                await progress_of(connection, name, known, number),
                await held.keys(connection, lease.slot, None, None),
                await leases.attempted(connection, lease.slot),
                known.generation(name),
                await muted_of(connection, name, number),
            )

        self._names = None  # a replay may have begun since the last slot was taken
        return await self._read(loaded, is_one_moment=True)

    async def attempt(self, lease: Lease, attempt: Attempt | None) -> None:
        await self._write(lambda connection: leases.attempt(connection, lease, attempt))

    def accuse(self, lease: Lease, attempt: Attempt, *, within_s: float) -> bool:
        def accused(connection: psycopg.Connection[Any]) -> None:
            leases.accuse(connection, lease, attempt)

        return self._pulse.do(accused, within_s)

    async def section(self) -> Section:
        self._names = None  # its conflicts do not come by `commit`
        section = PostgresSection(self._database, self._turn)
        await section.begin()
        return section

    async def read(self, keys: Sequence[StateKey]) -> Sequence[Versioned]:
        return await self._reading.read(keys)

    async def _look_up(self, keys: Sequence[StateKey]) -> list[Versioned]:
        async def found(connection: Connection) -> list[Versioned]:
            known = self._names = self._names or await names(connection)
            return await stored.read(connection, known, keys)

        return await self._read(found)

    async def scan(self, state: str, prefix: str) -> Sequence[tuple[str, Versioned]]:
        async def found(connection: Connection) -> Sequence[tuple[str, Versioned]]:
            return await stored.scan(connection, await names(connection), state, prefix)

        return await self._read(found)

    async def commit(
        self, units: Sequence[Unit], leases: Sequence[Lease], progress: Sequence[tuple[Slot, Progress]]
    ) -> Sequence[Outcome]:
        outcomes = await self._write(lambda connection: commit(connection, units, leases, progress))
        if Outcome.CONFLICT in outcomes:
            self._names = None  # perhaps what it read belongs to a generation that a replay has ended
        return outcomes

    # ---- held records ----

    async def held(self, slot: Slot, key: str, *, after: int = 0, limit: int = 1) -> Sequence[Held]:
        return await self._read(lambda connection: held.queue(connection, slot, key, after, limit))

    async def due(self, slot: Slot, *, after: str = "", limit: int = 1_000) -> Sequence[HeldKey]:
        return await self._read(lambda connection: held.keys(connection, slot, after or None, limit))

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
        return await self._read(
            lambda connection: held.first_of_each(connection, subscription, after, limit, key=key, type_name=type, error=error)
        )

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
        return await self._read(lambda connection: held.requests(connection, slots))

    async def answer(self, lease: Lease, request: Request) -> None:
        await self._write(lambda connection: held.answer(connection, lease, request))

    async def skipped(self, subscription: str | None = None, *, after: int = 0, limit: int = 1_000) -> Sequence[Skipped]:
        return await self._read(lambda connection: held.skipped(connection, subscription, after, limit))

    async def forget_skipped(self, subscription: str | None, *, through: int) -> int:
        return await self._write(lambda connection: held.forget_skipped(connection, subscription, through))

    # ---- outbox ----

    async def outbox(self, *, after: int, limit: int) -> Sequence[OutboxRow]:
        if await self._read(outbox.has_staged):
            await self._write(outbox.take_staged)
        return await self._read(lambda connection: outbox.waiting(connection, after, limit))

    async def stage(self, connection: object, emits: Sequence[Emitted]) -> None:
        await self._staging.put_async(connection, outbox.staged_rows(emits))

    def stage_blocking(self, connection: object, emits: Sequence[Emitted]) -> None:
        self._staging.put(connection, outbox.staged_rows(emits))

    async def number(self, lease: Lease, rows: Sequence[int], *, done: Sequence[int] = ()) -> Sequence[OutboxRow]:
        return await self._write(lambda connection: outbox.number(connection, lease, rows, done))

    async def refuse(self, lease: Lease, row: int, error: str) -> None:
        await self._write(lambda connection: outbox.refuse(connection, lease, row, error))

    async def issued(self) -> Mapping[TopicPartition, int]:
        return await self._read(outbox.issued)

    async def acknowledged(self) -> Mapping[TopicPartition, int]:
        return await self._read(outbox.acknowledged)

    # ---- one history with the log ----

    async def landmarks(self) -> Sequence[Landmark]:
        return await self._read(register.landmarks)

    async def keep_landmarks(self, landmarks: Sequence[Landmark]) -> None:
        await self._write(lambda connection: register.keep_landmarks(connection, landmarks))

    async def sent_before(self) -> Sequence[tuple[str, str]]:
        return await self._read(outbox.sent_before)

    async def reincarnate(self, new: Incarnation) -> None:
        self._names = None
        await self._write(lambda connection: register.reincarnate(connection, new, self._here))
        self.incarnation = new.number

    # ---- once more ----

    async def start_again(self, again: Again, reset: Callable[[Section], Awaitable[None]] | None = None) -> int:
        self._names = None
        if reset is None:
            return await self._write(lambda connection: start_again(connection, again))
        section = PostgresSection(self._database, self._turn)
        await section.begin()
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
        if not await self._read(has_former):  # as nearly always: no commit for nothing
            return 0
        return await self._write(lambda connection: collect(connection, limit))

    # ---- the whole ----

    async def status(self) -> StoreStatus:
        return await self._read(self._status, is_one_moment=True)

    async def _status(self, connection: Connection) -> StoreStatus:
        ((app, log),) = await rows_of(connection, "SELECT app, log FROM service")
        known = await names(connection)
        paused, keys = await leases.pauses(connection, self._here), await held.counts(connection)
        holding = {name: rest for name, *rest in await rows_of(connection, "SELECT subscription, records, bytes FROM holding")}
        subscriptions: list[SubscriptionStatus] = []
        for name, generation, types, origin in await rows_of(
            connection, "SELECT name, generation, types, origin FROM subscription ORDER BY name"
        ):
            blocked, parked = keys.get(name, (0, 0))
            records, size = holding.get(name, (0, 0))
            subscriptions.append(
                SubscriptionStatus(
                    name,
                    generation,
                    await progress_of(connection, name, known),
                    blocked,
                    parked,
                    records,
                    paused=paused.get(name, ()),
                    held_bytes=size,
                    origin=origin,
                    types=msgspec.json.decode(types),
                )
            )
        return StoreStatus(app or "", log, subscriptions, *await outbox.counts(connection))

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
        return await self._read(problems, is_one_moment=True)

    async def backup(self, target: Path, *, progress: Callable[[int, int], None] | None = None, check: bool = True) -> None:  # noqa: ARG002 the port asks for them
        raise FeatureMissing(
            "a backup into one file",
            adapter="the PostgreSQL store",
            instead="pg_dump --schema, or the server's own base backups and WAL archive",
        )

    async def aclose(self) -> None:
        try:
            with suppress(StoreError, Closed):  # no server to tell: the lease passes by itself
                await self.leave()
        finally:
            self._deaths.close()
            await self._reading.aclose()
            await asyncio.to_thread(self._pulse.close)
            await self._database.aclose()

    async def _read(self, work: Callable[[Connection], Awaitable[T]], *, is_one_moment: bool = False) -> T:
        try:
            return await self._database.read(work, is_one_moment=is_one_moment)
        except NotRead as error:
            raise StoreUnreachable(
                f"{self._database.place.shown} cannot be read ({error}): start the server; nothing is lost"
            ) from error

    async def _write(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run a job that has the turn.

        Raises:
            StoreReadOnly: It was not committed, and never will be.
            StoreError: Nobody can say whether it was committed.
            EverlogError: What the job refused; it changed nothing.
        """
        try:
            async with self._turn:  # in the order of the calls, and one connection for all of this process
                return await self._database.write(work, begin=TURN)
        except NothingStored as error:
            raise StoreReadOnly(
                f"{self._database.place.shown} could not be written ({error}): nothing was stored; start the server, make room or give "
                f"permission"
            ) from error
        except OutcomeUnknown as error:
            raise StoreError(f"the commit failed ({error}): whether it is stored shows when the slots are taken anew") from error


async def progress_of(
    connection: Connection, subscription: str, known: Names, partition: int | None = None
) -> Sequence[Progress]:
    """Return the progress of a subscription in its generation of today; in one partition of all topics, or in all."""
    rows = await rows_of(
        connection,
        "SELECT topic, partition, through, unfinished, dedupe FROM progress WHERE subscription = %s AND generation = %s "
        "AND (%s::integer IS NULL OR partition = %s) ORDER BY topic, partition",
        (subscription, known.generation(subscription), partition, partition),
    )
    return [
        Progress(TopicPartition(topic, number), Offset(through), _decode_offsets(unfinished), bytes(dedupe))
        for topic, number, through, unfinished, dedupe in rows
    ]
