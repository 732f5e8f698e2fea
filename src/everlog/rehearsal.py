"""A replay on a copy of the store: what it would make of state and of what was published, while nothing is changed."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple, cast

import msgspec

from everlog.clock import SystemClock
from everlog.codec import Batch
from everlog.errors import CommandRefused, FeatureMissing
from everlog.log import Log, Reader
from everlog.position import Offset, TopicPartition
from everlog.record import CAUSATION_ID, NewRecord, StoredRecord
from everlog.runtime import end_process
from everlog.settings import Settings, open_store, resolve
from everlog.store import Emitted, ParkedKey, Progress, Room, Section, Slot, Store, SubscriptionStatus, Unit
from everlog.subscriptions.call import BatchCall, Call
from everlog.subscriptions.careful import Careful
from everlog.subscriptions.committer import Committer
from everlog.subscriptions.declaration import AppDeclaration, SubscriptionDeclaration
from everlog.subscriptions.engine import Engine
from everlog.subscriptions.outlets import Outlets
from everlog.subscriptions.overlay import Overlay
from everlog.subscriptions.progress import SlotWork
from everlog.subscriptions.repeating import From, Repetition, events_left, plan_repetition
from everlog.subscriptions.surroundings import Surroundings
from everlog.subscriptions.tx import Outgoing
from everlog.subscriptions.units import Units, id_of, id_prefix

_LOOK_S: Final = 0.2
_PAGE: Final = 1_000
_UNBOUNDED: Final = Room(records=1 << 40, size_bytes=1 << 60)
_INDICES: Final = 64
"""So many of the events that follow from one are looked for among what is published no more."""


class Difference(NamedTuple):
    """One row or event that would be another."""

    what: str
    """The state, or the topic and type."""
    key: str
    before: bytes | None
    after: bytes | None


class Comparison(NamedTuple):
    """How many are the same and how many are not, and the first of those that are not."""

    same: int
    changed: int
    added: int
    gone: int
    first: Sequence[Difference]

    @property
    def is_same(self) -> bool:
        """Nothing differs."""
        return not (self.changed or self.added or self.gone)


class Rehearsal(NamedTuple):
    """What a replay came to."""

    plan: Repetition
    rows: Mapping[str, Comparison]
    """By state."""
    published: Comparison
    """What the handlers published, against what is in the log. A replay publishes none of it again."""
    new: Sequence[Difference]
    """What the replay would publish, as it was never published: the first of it."""
    new_count: int
    failed: Sequence[ParkedKey]


@asynccontextmanager
async def copied(
    store: Store, settings: Settings, app: str, folder: Path, told: Callable[[int, int], None]
) -> AsyncGenerator[Store]:
    """Open a copy of a store.

    Args:
        store: Of which.
        settings: Where that is.
        app: Whose it is.
        folder: Where the copy goes.
        told: Told how many bytes are copied, and of how many.

    Raises:
        FeatureMissing: The store cannot be copied.
    """
    if not store.features.backup:
        raise FeatureMissing("a dry run", adapter="this store", instead="replay on a store that was made for that")
    place = folder / "copy.db"
    await store.backup(place, progress=told, check=False)
    scheme = resolve(settings.store_url, app=app).partition(":")[0]
    copy = await open_store(dataclasses.replace(settings, store_url=f"{scheme}:{place}"), app, clock=SystemClock())
    try:
        yield copy
    finally:
        await copy.aclose()


class Wish(NamedTuple):
    """Which replay."""

    start: From
    keep_state: bool = False
    reset: Callable[[Section], Awaitable[None]] | None = None
    """Empties the app's own tables."""


async def rehearse(
    app: AppDeclaration,
    declaration: SubscriptionDeclaration,
    log: Log,
    copy: Store,
    wish: Wish,
    *,
    most: int = 20,
    told: Callable[[int, int], None] = lambda done, total: None,  # noqa: ARG005 nobody listens
) -> Rehearsal:
    """Replay on a copy of the store, whose events stay in it, and compare.

    Handlers run as ever, with what the app's lifespan gives them.

    Args:
        app: Whose lifespan.
        declaration: Which subscription.
        log: Read only.
        copy: What is changed; nobody else uses it.
        wish: Which replay.
        most: How many differences of a kind to keep.
        told: Told how many events are handled, and of how many.

    Raises:
        CommandRefused: A replay could not be, or what the handlers need does not answer.
    """
    ends = {where: offset for topic in await log.topics() for where, offset in (await log.head(topic.name)).offsets.items()}
    plan = await plan_repetition(log, copy, declaration, wish.start, rebuilds=True, keep_state=wish.keep_state)
    before = {state: dict(await copy.scan(state, "[]")) for state in declaration.states}
    sent_through = 0
    async for row, _ in _outbox(copy):
        sent_through = row
    await copy.start_again(plan.again, wish.reset)
    await _Trial(app, declaration, log, copy, plan).run(told)
    rows: dict[str, Comparison] = {}
    for state in declaration.states:
        after = dict(await copy.scan(state, "[]"))
        rows[state] = _compared_rows(
            state, {key: row.value for key, row in before[state].items()}, {key: row.value for key, row in after.items()}, most
        )
    with closing(_Published(app.name, plan.stood)) as published:
        async for row, emitted in _outbox(copy):
            if row <= sent_through:
                published.add([(emitted.topic, emitted.record)])
        for topic in await log.topics():
            async for records in _records(log, {where: end for where, end in ends.items() if where.topic == topic.name}):
                published.add([(record.topic, record) for record in records])
        async for row, emitted in _outbox(copy):
            if row > sent_through:
                published.compare(emitted, most)
        is_whole = wish.start == "beginning" and not plan.gone
        comparison = published.result(most, with_gone=is_whole)
        parked = [key for key in await copy.parked() if key.subscription == declaration.name]
        return Rehearsal(plan, rows, comparison, published.new, published.new_count, parked)


def _compared_rows(state: str, before: Mapping[str, bytes | None], after: Mapping[str, bytes | None], most: int) -> Comparison:
    differences = [
        Difference(state, key, before.get(key), after.get(key))
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]
    added = sum(one.before is None for one in differences)
    gone = sum(one.after is None for one in differences)
    same = len({*before, *after}) - len(differences)
    return Comparison(same, len(differences) - added - gone, added, gone, differences[:most])


# ---- the run ----


class _Trial:
    """One subscription at work on the copy, up to where it stands on the original."""

    def __init__(
        self, app: AppDeclaration, declaration: SubscriptionDeclaration, log: Log, copy: Store, plan: Repetition
    ) -> None:
        self._app = app
        # What fails is shown, and not tried again.
        delivery = dataclasses.replace(declaration.delivery, on_error={Exception: "park"}, on_gap="oldest")
        self._declaration = msgspec.structs.replace(declaration, delivery=delivery)
        self._log = cast("Log", _Bounded(log, {one.where: one.through for one in plan.stood.progress}))
        self._copy = copy
        self._plan = plan
        self._clock = SystemClock()
        self._engine: Engine

    async def run(self, told: Callable[[int, int], None]) -> None:
        """Handle it all.

        Raises:
            CommandRefused: What the handlers need does not answer.
        """
        declaration, copy = self._declaration, self._copy
        async with AsyncExitStack() as stack:
            resources = await stack.enter_async_context(self._app.lifespan()) if self._app.lifespan is not None else None
            joined = await copy.join({declaration.name: sorted(declaration.branches)}, alive_s=declaration.delivery.time_limit_s)
            stack.push_async_callback(copy.leave)
            overlay, committer = Overlay(copy), Committer(copy, self._clock, self._snapshot)
            stood = self._plan.stood
            versions = count(joined.version_base + 1)
            units = _RehearsedUnits(
                self._app.name, stood.origin, stood.generation, versions=versions, overlay=overlay, clock=self._clock
            )
            around = Surroundings(
                app=self._app.name,
                log=self._log,
                store=copy,
                committer=committer,
                overlay=overlay,
                outlets=Outlets(self._log, create_topics=True),
                clock=self._clock,
                resources=resources,
                careful=Careful(),
                end=end_process,
                dice=random.random,
            )
            engine = self._engine = Engine(declaration, around, units, room=_UNBOUNDED)
            stack.callback(engine.close)
            for number in range(declaration.slots):
                lease = await copy.acquire(Slot(declaration.name, number))
                assert lease is not None, "nobody else uses the copy"
                engine.open_slot(lease, await copy.load(lease))
            tasks = [asyncio.create_task(work) for work in (committer.run(), *engine.tasks())]
            stack.push_async_callback(_cancelled, tasks)
            await self._watch(tasks, told)
            await engine.stop()

    def _snapshot(self, work: SlotWork, units: Sequence[Unit]) -> Sequence[Progress]:
        return self._engine.snapshot(work, units)

    async def _watch(self, tasks: Sequence[asyncio.Task[None]], told: Callable[[int, int], None]) -> None:
        """Return when all is handled."""
        name = self._declaration.name
        while True:
            for task in tasks:
                if task.done():
                    task.result()  # raises: no task ends by itself
            now = next(one for one in (await self._copy.status()).subscriptions if one.name == name)
            left = events_left(self._plan, now)
            told(max(0, self._plan.events - left), self._plan.events)
            if not left:
                return
            if self._engine.is_paused:
                raise CommandRefused(
                    f"what the handlers of subscription {name!r} need does not answer, so that most of its events fail: mend that first. "
                    f"Nothing was changed"
                )
            self._copy.turned()
            await self._copy.wait(_LOOK_S)


async def _cancelled(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _RehearsedUnits(Units):
    """Units that publish everything, under ids that say what it follows from and whether a replay would publish it."""

    _is_muted = False

    def publishes(self, call: Call | BatchCall) -> bool:  # noqa: ARG002 as the base has it
        """Always: what is published stays in the copy."""
        return True

    def _emits(self, outgoing: Sequence[Outgoing], call: Call | BatchCall) -> list[Emitted]:
        self._is_muted = call.is_replayed
        return super()._emits(outgoing, call)

    def _id(self, cause: str, index: int) -> str:
        return f"{'-' if self._is_muted else '+'}{cause}{index}"


class _Bounded:
    """A log that ends where a subscription stood, and that nothing is written to. Everything else is the log's own."""

    def __init__(self, log: Log, ends: Mapping[TopicPartition, Offset]) -> None:
        self._log = log
        self._ends = ends

    def reader(self, after: Mapping[TopicPartition, Offset]) -> Reader:
        """Return a reader that comes to an end, and waits there."""
        return _BoundedReader(self._log.reader({}), self._ends, after)

    async def ensure_topic(self, topic: object) -> None:
        """Do nothing: what is published stays in the copy."""

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)


class _BoundedReader:
    """A reader of partitions up to an end each."""

    def __init__(self, reader: Reader, ends: Mapping[TopicPartition, Offset], after: Mapping[TopicPartition, Offset]) -> None:
        self._reader = reader
        self._ends = ends
        self.assign(after)

    async def next(self, *, max_records: int = 4_096, max_bytes: int = 1 << 20) -> Batch:
        """Return what is next, without what lies behind the end of its partition."""
        batch = await self._reader.next(max_records=max_records, max_bytes=max_bytes)
        chunks = [chunk.until(self._ends[chunk.where]) for chunk in batch.chunks]
        done = [where for where, through in batch.through.items() if through >= self._ends[where]]
        self._reader.revoke(done)
        return batch._replace(chunks=[chunk for chunk in chunks if len(chunk) > 0])

    def assign(self, after: Mapping[TopicPartition, Offset]) -> None:
        """Read these partitions as well, where they do not stand at their end."""
        self._reader.assign({where: offset for where, offset in after.items() if offset < self._ends.get(where, offset)})

    def revoke(self, partitions: Sequence[TopicPartition]) -> None:
        """Read these no more."""
        self._reader.revoke(partitions)

    def close(self) -> None:
        """Let go of what the reader holds."""
        self._reader.close()


# ---- what was published ----


async def _outbox(copy: Store) -> AsyncIterator[tuple[int, Emitted]]:
    after = 0
    while rows := await copy.outbox(after=after, limit=_PAGE):
        for row in rows:
            yield row.id, row.emitted
        after = rows[-1].id


async def _records(log: Log, ends: Mapping[TopicPartition, Offset]) -> AsyncIterator[list[StoredRecord]]:
    """Yield what a topic holds, up to an end of each partition."""
    if not ends:
        return
    first = (await log.first(next(iter(ends)).topic)).offsets
    left = {where: first[where] for where, end in ends.items() if first[where] < end}
    reader = _BoundedReader(log.reader({}), ends, left)
    try:
        while left:
            batch = await reader.next()
            yield [record for chunk in batch.chunks for record in chunk.records()]
            for where, through in batch.through.items():
                if through >= ends[where]:
                    left.pop(where, None)
    finally:
        reader.close()


class _Published:
    """What an app has published in answer to events, kept on disk: a log may hold more than memory does."""

    def __init__(self, app: str, stood: SubscriptionStatus) -> None:
        self._app = app
        self._prefixes = [id_prefix(app, stood.origin, number) for number in range(stood.generation, 0, -1)]
        self._sources: set[str] = set()
        self._same = self._changed = self._added = 0
        self._first: list[Difference] = []
        self.new: list[Difference] = []
        self.new_count = 0
        self._base = sqlite3.connect("")
        self._base.execute(
            "CREATE TABLE published (id TEXT PRIMARY KEY, topic TEXT, type TEXT, key TEXT, data BLOB, cause TEXT, is_met INTEGER) WITHOUT ROWID"
        )

    def close(self) -> None:
        """Remove it."""
        self._base.close()

    def add(self, records: Sequence[tuple[str, NewRecord | StoredRecord]]) -> None:
        """Note what is published, and where events come from."""
        self._sources.update(record.source for _, record in records)
        self._base.executemany(
            "INSERT OR IGNORE INTO published VALUES (?, ?, ?, ?, ?, ?, 0)",
            [
                (record.id, topic, record.type, record.key, record.data, (record.headers or {})[CAUSATION_ID])
                for topic, record in records
                if record.source == self._app and CAUSATION_ID in (record.headers or {})
            ],
        )

    def compare(self, emitted: Emitted, most: int) -> None:
        """Compare an event of the rehearsal with what was published in its place."""
        record = emitted.record
        assert record.id is not None
        is_new, (cause, _, index) = record.id.startswith("+"), record.id[1:].rpartition("\x1f")
        what, key = f"{emitted.topic} {record.type}", record.key or ""
        if is_new:
            self.new_count += 1
            if len(self.new) < most:
                self.new.append(Difference(what, key, None, record.data))
            return
        for prefix in self._prefixes:
            former = id_of(prefix, f"{cause}\x1f", int(index))
            found = self._base.execute("SELECT topic, type, key, data FROM published WHERE id = ?", (former,)).fetchone()
            if found is not None:
                self._base.execute("UPDATE published SET is_met = 1 WHERE id = ?", (former,))
                if found == (emitted.topic, record.type, record.key, record.data):
                    self._same += 1
                else:
                    self._changed += 1
                    self._keep(Difference(what, key, found[3], record.data), most)
                return
        self._added += 1
        self._keep(Difference(what, key, None, record.data), most)

    def result(self, most: int, *, with_gone: bool) -> Comparison:
        """Return the comparison.

        Args:
            most: How many differences to keep.
            with_gone: Look also for what was published and would not be any more: all events were handled.
        """
        gone = 0
        if with_gone:
            for topic, type_, key, data in self._gone():
                gone += 1
                self._keep(Difference(f"{topic} {type_}", key or "", data, None), most)
        return Comparison(self._same, self._changed, self._added, gone, self._first)

    def _gone(self) -> Iterator[tuple[str, str, str | None, bytes]]:
        """Yield what this subscription published and the rehearsal did not: its ids say whose it is."""
        for id_, cause, topic, type_, key, data in self._base.execute(
            "SELECT id, cause, topic, type, key, data FROM published WHERE is_met = 0"
        ):
            texts = [f"{source}\x1f{cause}\x1f" for source in self._sources]
            if any(id_ == id_of(prefix, text, index) for prefix in self._prefixes for text in texts for index in range(_INDICES)):
                yield topic, type_, key, data

    def _keep(self, difference: Difference, most: int) -> None:
        if len(self._first) < most:
            self._first.append(difference)
