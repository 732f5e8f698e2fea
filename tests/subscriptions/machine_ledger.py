"""What the state machine has sent and seen, and what is wrong about it at the end: by a model that does one event after the other, and by the judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import msgspec
from tests.subscriptions import machine_shop as shop
from tests.subscriptions.chaos import Outcome, Sent, faults, read_rows
from tests.subscriptions.machine_world import World

from everlog.conformance.history import Effect, History, Told
from everlog.conformance.judge import judge
from everlog.position import BEGINNING, Offset, TopicPartition
from everlog.record import StoredRecord
from everlog.store import StoreStatus, SubscriptionStatus

SUBSCRIPTIONS = (shop.SINGLE, shop.BATCH)
_TOPICS = {
    shop.SINGLE: (shop.left.name, shop.right.name, shop.free.name),
    shop.BATCH: (shop.left.name, shop.right.name),
}


class Numbered(msgspec.Struct):
    n: int
    by: str = ""


class Item(NamedTuple):
    """An event that was sent."""

    n: int
    topic: str
    key: str | None
    is_broken: bool


def is_finished(subscription: SubscriptionStatus, where: TopicPartition, offset: int) -> bool:
    """Tell whether a subscription is done with a record, or holds a copy."""
    return any(one.where == where and offset <= one.through and offset not in one.unfinished for one in subscription.progress)


class Ledger:
    """Keeps the history of a run. What no handler is for is not in it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.history = History()
        self.items: dict[int, Item] = {}
        self._raw: dict[tuple[TopicPartition, int], int] = {}
        self._lost: dict[str, set[int]] = {name: set() for name in SUBSCRIPTIONS}
        self._read_through: dict[TopicPartition, Offset] = {}
        self._finished: dict[tuple[str, TopicPartition], tuple[int, frozenset[Offset]]] = {}

    def sends(self, topic: str, key: str | None, *, is_broken: bool = False) -> int:
        """Note that an event is about to be sent, and return its number."""
        n = len(self.items)
        self.items[n] = Item(n, topic, key, is_broken)
        self.history.sends("outside", n, f"machine.{topic}", key)
        return n

    def stored(self, n: int, where: TopicPartition | None = None, offset: Offset | None = None) -> None:
        """Note that it is stored; with its place where nobody can read its number."""
        self.history.told(n, Told.STORED, where, offset)
        if where is not None and offset is not None:
            self._raw[where, offset] = n

    # ---- the log ----

    async def read(self) -> None:
        """Read what is new in the log."""
        log = self._world.log
        for topic in (shop.left, shop.right, shop.free, shop.out):
            for where, last in (await log.head(topic.name)).offsets.items():
                through = self._read_through.get(where, BEGINNING)
                reader = log.reader({where: through})
                while through < last:
                    batch = await reader.next()
                    for chunk in batch.chunks:
                        for index in range(chunk.start, chunk.length):
                            self._seen(where, chunk.record(index))
                    through = batch.through[where]
                reader.close()
                self._read_through[where] = through

    def _seen(self, where: TopicPartition, record: StoredRecord) -> None:
        if record.type.startswith("machine.stranger"):
            return
        raw = self._raw.get((where, record.offset))
        if raw is not None:
            self.history.read("outside", where, record.offset, raw, record.key)
            return
        event = msgspec.json.decode(record.data, type=Numbered)
        self.history.read("outside", where, record.offset, event.by or event.n, record.key)

    def deleted(self, where: TopicPartition, through: Offset, status: StoreStatus) -> None:
        """Note that retention has deleted all up to an offset: who has not finished a record may never see it."""
        self.history.gone(where, through)
        for subscription in status.subscriptions:
            for seen in self.history.readings.get(("outside", where), ()):
                if seen.offset <= through and not is_finished(subscription, where, seen.offset):
                    self._lost[subscription.name].add(cast("int", seen.event))

    # ---- between two steps ----

    def look(self, status: StoreStatus) -> list[str]:
        """Return what must never be seen, at any moment."""
        wrong = list(self._world.weather.overlaps)
        for subscription in status.subscriptions:
            for one in subscription.progress:
                place = (subscription.name, one.where)
                through, unfinished = self._finished.get(place, (-1, frozenset[Offset]()))
                again = {offset for offset in one.unfinished if offset <= through} - unfinished
                if one.through < through or again:
                    wrong.append(f"{place}: through {through} and then {one.through}, unfinished again {sorted(again)}")
                self._finished[place] = one.through, frozenset(one.unfinished)
        return wrong

    # ---- the end ----

    async def wrong(self) -> list[str]:
        """Return all that is not as it would be if one event had followed the other."""
        await self.read()
        found: list[str] = []
        for call in self._world.weather.calls:
            for key, n in dict(call.events).items():  # a batch is one call for all events of a key in it
                if call.ended is not None:
                    self.history.ran(call.worker, n, key, call.began, call.ended)
        for name in SUBSCRIPTIONS:
            found += await self._compare(name)
        found += [str(fault) for fault in judge(self.history)]
        return found + [f"store: {line}" for line in await self._world.store.verify()]

    async def _compare(self, name: str) -> list[str]:
        history, store = self.history, self._world.store
        prefix = "" if name == shop.SINGLE else f"{name}_"
        journal = cast("dict[str, list[tuple[str, int]]]", await self._rows(f"{prefix}journal/1"))
        emitted = self._emitted(name)
        skipped = Counter(self._number(one.record) for one in await store.skipped(name, limit=100_000))
        seen = cast("dict[int, int]", await self._rows("seen/1")) if name == shop.SINGLE else {}
        shown = {n for rows in journal.values() for _, n in rows} | set(seen)
        gone = (set(skipped) | self._lost[name]) - shown
        keyed = [one for one in self.items.values() if one.key is not None and one.n not in gone]
        outcome = Outcome(
            {key: [(topic, n) for topic, n in rows] for key, rows in journal.items()},
            cast("Any", await self._rows(f"{prefix}totals/1")),
            cast("Any", await self._rows(f"{prefix}shared/1")),
            [one for one in emitted if not one[1].startswith("free:")],
            [],
        )
        wrong = [f"{name}: {one}" for one in faults([Sent(one.topic, cast("str", one.key), one.n) for one in keyed], outcome)]
        wrong += [f"{name}: {n} was skipped {count} times" for n, count in skipped.items() if count > 1]
        wrong += [f"{name}: {n} was skipped, and is handled" for n in shown & set(skipped)]
        history.subscribes(name, _TOPICS[name])
        epochs = self._epochs(f"{prefix}journal/1")
        for key, rows in journal.items():
            effects: list[Effect] = []
            for _, n in rows:
                before = effects[-1].epoch if effects else 0
                effects.append(Effect(n, epochs.get(n, before)))  # a commit that nobody was told of has the epoch before
            history.applied(name, key, effects)
        if name == shop.SINGLE:
            wrong += self._compare_free(seen, emitted)
        for n in gone:
            history.held(name, n)
        for one in self.items.values():
            if name == shop.SINGLE or one.key is not None:
                history.emits(name, one.n, f"{name}:{one.topic}:{one.n}")
        return wrong

    def _compare_free(self, seen: dict[int, int], emitted: Sequence[tuple[str, str]]) -> list[str]:
        lost = self._lost[shop.SINGLE]
        expected = {one.n: 1 for one in self.items.values() if one.key is None and (one.n not in lost or one.n in seen)}
        for n in seen:
            self.history.applied(shop.SINGLE, f"free {n}", [Effect(n)])
        sent = Counter(int(text.partition(":")[2]) for _, text in emitted if text.startswith("free:"))
        wrong: list[str] = []
        if seen != expected:
            wrong.append(f"events without a key: expected {sorted(expected)}, handled {seen}")
        if sent != expected:
            wrong.append(f"events without a key: expected {sorted(expected)}, emitted {dict(sent)}")
        return wrong

    def _emitted(self, name: str) -> list[tuple[str, str]]:
        """Return what a subscription has emitted: the key, and what for, each partition's in order."""
        found: list[tuple[str, str]] = []
        for (_, where), readings in self.history.readings.items():
            if where.topic == shop.out.name:
                for seen in readings:
                    by, _, text = str(seen.event).partition(":")
                    if by == name:
                        found.append((seen.key or "", text))
        return found

    def _epochs(self, state: str) -> dict[int, int]:
        """Return under which epoch each event was handled first."""
        epochs: dict[int, int] = {}
        for unit, epoch in self._world.faults.committed:
            for (written, _), write in unit.writes.items():
                value = getattr(write, "value", None)
                if written == state and value is not None:
                    for _, n in msgspec.json.decode(value):
                        epochs.setdefault(n, epoch)
        return epochs

    def _number(self, record: StoredRecord) -> int:
        where = TopicPartition(record.topic, record.partition)
        raw = self._raw.get((where, record.offset))
        return raw if raw is not None else msgspec.json.decode(record.data, type=Numbered).n

    async def _rows(self, state: str) -> dict[Any, object]:
        rows = await self._world.store.scan(state, "[]")
        return read_rows({key: row.value for key, row in rows if row.value is not None})
