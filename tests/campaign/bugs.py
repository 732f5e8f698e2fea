"""Bugs that are seeded on purpose: each breaks one promise of the core, in the processes of a campaign, and the judge has to catch it.

A bug that needs a kill at the worst moment brings it along: it ends its process there now and then.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Final, NamedTuple

import msgspec
from tests.campaign.points import kill

from everlog.admission import Numbering
from everlog.client.publisher import _Send
from everlog.conformance.judge import Rule
from everlog.dedupe import Seen
from everlog.drivers.sqlite.database import Database, Group, _settle
from everlog.drivers.sqlite.rows import rows_of
from everlog.logs.sqlite.log import SqliteLog
from everlog.logs.sqlite.writer import Writer
from everlog.position import TopicPartition
from everlog.store import RELAY, Lease, Outcome, Progress, Slot, SlotState, Unit
from everlog.stores.sqlite.leases import is_valid
from everlog.stores.sqlite.store import SqliteStore
from everlog.subscriptions.committer import Committer
from everlog.subscriptions.relay import Relay
from everlog.subscriptions.run import Run

# Modules whose names are replaced: to whoever checks types, they may have any.
log_writer: Final[Any] = import_module("everlog.logs.sqlite.writer")
store_commit: Final[Any] = import_module("everlog.stores.sqlite.commit")
applying: Final[Any] = import_module("everlog.rules.applying")
store_held: Final[Any] = import_module("everlog.stores.sqlite.held")
store_outbox: Final[Any] = import_module("everlog.stores.sqlite.outbox")
lanes: Final[Any] = import_module("everlog.subscriptions.lane")
taking: Final[Any] = import_module("everlog.subscriptions.taking")

KILLING: Final = 0.03
"""How often a bug that needs it ends its process."""


class Bug(NamedTuple):
    """One bug.

    Attributes:
        text: What it does wrong.
        role: In which processes.
        seed: Puts it into this process, which decides with these dice.
        rules: What the judge may find; each alone is enough.
        faults: What the campaign does meanwhile: kind → weight.
        seconds: For how long.
        rate: Events per second of all producers.
        kept_behind: Records that the janitor leaves in each partition.
    """

    text: str
    role: str
    seed: Callable[[random.Random], None]
    rules: frozenset[Rule]
    faults: Mapping[str, int] = {"kill": 1}
    seconds: float = 4.0
    rate: float = 800.0
    kept_behind: int = 100


def _acknowledged_before_its_commit(dice: random.Random) -> None:
    database: Any = Database
    commit, apply = database._commit, Writer.apply
    futures: list[Any] = []
    tell: list[Any] = []

    def committing(self: Database[Any, Any], group: Sequence[Any]) -> None:
        futures[:] = [future for _, future in group]
        tell[:] = [self]
        commit(self, group)

    def applying(self: Writer, group: Group, jobs: Sequence[Any]) -> Any:
        results = apply(self, group, jobs)
        tell[0]._tell(_settle, [(future, one) for future, one in zip(futures, results, strict=True) if future is not None])
        if dice.random() < KILLING:
            time.sleep(0.02)  # the producer notes what it was told
            kill()
        return results

    database._commit = committing
    Writer.apply = applying  # type: ignore[method-assign]


def _torn(dice: random.Random, *, effects_first: bool) -> None:
    stored = Committer._stored

    async def torn(
        self: Committer, units: Sequence[Unit], leases: Sequence[Lease], progress: Sequence[tuple[Slot, Progress]]
    ) -> Sequence[Outcome]:
        outcomes: Sequence[Outcome] = ()
        if effects_first:
            outcomes = await stored(self, units, leases, [])
        else:
            await stored(self, [], leases, progress)
        if units and dice.random() < KILLING:
            kill()
        if effects_first:
            await stored(self, [], leases, progress)
            return outcomes
        return await stored(self, units, leases, progress)

    Committer._stored = torn  # type: ignore[method-assign]


def _progress_before_effects(dice: random.Random) -> None:
    _torn(dice, effects_first=False)


def _effects_before_progress(dice: random.Random) -> None:
    _torn(dice, effects_first=True)


def _dedupe_by_the_last(dice: random.Random) -> None:
    last: dict[str, Numbering] = {}

    def numbering(self: Writer, connection: object, name: str, topic: int, part: int) -> Numbering:
        return self._numberings.setdefault((name, topic, part), last.setdefault(name, Numbering()))

    def above(self: Seen, start: int, count: int) -> list[tuple[int, int]]:
        first = max(start, self.highest + 1)
        return [(first, start + count)] if first < start + count else []

    Writer._numbering = numbering  # type: ignore[method-assign]
    Seen.new_runs = above  # type: ignore[method-assign]


def _relay_without_lease(dice: random.Random) -> None:
    acquire = SqliteStore.acquire
    highest: dict[TopicPartition, int] = {}

    async def anyway(self: SqliteStore, slot: Slot) -> Lease | None:
        if slot == RELAY:
            return Lease(RELAY, 0, 0)
        return await acquire(self, slot)

    def number(connection: Any, lease: Lease, rows: Sequence[int], done: Sequence[int]) -> Sequence[Any]:
        connection.executemany("DELETE FROM outbox WHERE id = ?", [(row,) for row in done])
        if not highest:
            highest.update(store_outbox.issued(connection))
        return [_numbered(row, highest) for row in _rows(connection, rows)]

    SqliteStore.acquire = anyway  # type: ignore[method-assign]
    store_outbox.number = number


def _rows(connection: Any, ids: Sequence[int]) -> Sequence[Any]:
    columns = store_outbox._COLUMNS
    found = [row for id_ in sorted(set(ids)) for row in rows_of(connection, f"SELECT {columns} FROM outbox WHERE id = ?", (id_,))]
    return [store_outbox._outbox_row(row) for row in found]


def _numbered(row: Any, highest: dict[TopicPartition, int]) -> Any:
    where = TopicPartition(row.emitted.topic, row.emitted.record.partition)
    highest[where] = highest.get(where, -1) + 1
    return msgspec.structs.replace(row, sequence=highest[where])


def _relay_renumbers(dice: random.Random) -> None:
    number = store_outbox.number
    sent = SqliteLog._appended
    is_new = [True]

    def anew(connection: Any, lease: Lease, rows: Sequence[int], done: Sequence[int]) -> Sequence[Any]:
        if is_new.pop() if is_new else False:
            connection.execute("UPDATE outbox SET sequence = NULL")
        numbered: Sequence[Any] = number(connection, lease, rows, done)
        return numbered

    async def answered(self: SqliteLog, submitted: Any, count: int) -> Any:
        result = await sent(self, submitted, count)
        if dice.random() < KILLING:
            kill()
        return result

    store_outbox.number = anew
    SqliteLog._appended = answered  # type: ignore[method-assign]


def _outbox_emptied_first(dice: random.Random) -> None:
    send = Relay._send

    async def marked_first(self: Relay, lease: Lease, rows: Sequence[Any]) -> list[int]:
        await self._store.number(lease, [], done=[row.id for row in rows])
        if dice.random() < KILLING:
            kill()
        await send(self, lease, rows)
        return []

    Relay._send = marked_first  # type: ignore[method-assign]


def _epoch_outside(dice: random.Random) -> None:
    commit = SqliteStore.commit

    async def checked_before(
        self: SqliteStore, units: Sequence[Unit], leases: Sequence[Lease], progress: Sequence[tuple[Slot, Progress]]
    ) -> Sequence[Outcome]:
        with self._snapshot() as connection:
            leases = [lease for lease in leases if is_valid(connection, lease)]
        await asyncio.sleep(0.02)
        return await commit(self, units, leases, progress)

    SqliteStore.commit = checked_before  # type: ignore[method-assign]
    store_commit.is_valid = _always


def _always(connection: object, lease: Lease) -> bool:
    return True


def _lanes_by_topic(dice: random.Random) -> None:
    lane_of = taking.lane_of

    def apart(key: str | None, chunk: Any, index: int) -> str:
        return f"{chunk.where.topic} {lane_of(key, chunk, index)}"

    taking.lane_of = apart
    lanes.lane_of = apart


def _unfinished_dropped(dice: random.Random) -> None:
    load = SqliteStore.load

    async def forgetful(self: SqliteStore, lease: Lease) -> SlotState:
        state = await load(self, lease)
        return msgspec.structs.replace(state, progress=[msgspec.structs.replace(one, unfinished=[]) for one in state.progress])

    commit = SqliteStore.commit

    async def dying(
        self: SqliteStore, units: Sequence[Unit], leases: Sequence[Lease], progress: Sequence[tuple[Slot, Progress]]
    ) -> Sequence[Outcome]:
        outcomes = await commit(self, units, leases, progress)
        if any(one.unfinished for _, one in progress) and dice.random() < KILLING:
            kill()
        return outcomes

    SqliteStore.load = forgetful  # type: ignore[method-assign]
    SqliteStore.commit = dying  # type: ignore[method-assign]


def _blocked_key_overtaken(dice: random.Random) -> None:
    def backwards(connection: Any, slot: Slot, key: str, after: int, limit: int) -> Any:
        sql = f"SELECT {store_held._COLUMNS} FROM held WHERE subscription = ? AND slot = ? AND key = ? ORDER BY id DESC LIMIT ?"
        return [store_held._held(row) for row in rows_of(connection, sql, (*slot, key, limit))]

    store_held.queue = backwards


def _queue_dropped(dice: random.Random) -> None:
    store_commit._RELEASE = "DELETE FROM held WHERE key = (SELECT key FROM held WHERE id = ?)"


def _offset_reused(dice: random.Random) -> None:
    delete = log_writer.delete

    def from_nothing(connection: Any, cut: Any) -> int:
        records: int = delete(connection, cut)
        connection.execute("UPDATE part SET next_offset = 0 WHERE topic = ? AND part = ?", (cut.topic, cut.part))
        return records

    log_writer.delete = from_nothing


def _neighbour_undone(dice: random.Random) -> None:
    apply = applying.Rows.apply

    def undoing(self: Any, unit: Unit) -> Outcome:
        outcome: Outcome = apply(self, unit)
        if outcome is Outcome.CONFLICT and self.changed:
            place = next(reversed(self.changed))
            del self.changed[place], self._rows[place]
        return outcome

    applying.Rows.apply = undoing


def _reads_not_validated(dice: random.Random) -> None:
    apply = applying.Rows.apply

    def blindly(self: Any, unit: Unit) -> Outcome:
        unit.reads = {}
        outcome: Outcome = apply(self, unit)
        return outcome

    applying.Rows.apply = blindly


def _record_skipped(dice: random.Random) -> None:
    made = Run.__init__

    def skipping(self: Run, *parts: Any, **named: Any) -> None:
        made(self, *parts, **named)
        if dice.random() < 0.05:
            next(self.items, None)

    Run.__init__ = skipping  # type: ignore[method-assign]


def _sent_again_as_new(dice: random.Random) -> None:
    start = _Send.start

    def renumbered(self: _Send) -> Any:
        if getattr(self, "_was_in_doubt", False):
            counts: dict[int, int] = {}
            for record in self.target.records:
                counts[record.partition] = counts.get(record.partition, 0) + 1
            self._flow.leave(self.first)
            self.first = self._flow.take(counts)
        return start(self)

    _Send.start = renumbered  # type: ignore[method-assign]


def _rules(*rules: Rule) -> frozenset[Rule]:
    return frozenset(rules)


_LOSES: Final = _rules(Rule.LOST, Rule.UNSEEN)

BUGS: Final[Mapping[str, Bug]] = {
    "acknowledged before its commit": Bug(
        "a producer is told that its events are stored before the transaction is committed", "producer",
        _acknowledged_before_its_commit, _rules(Rule.LOST, Rule.OFFSET_REUSED), {},
    ),
    "progress before effects": Bug(
        "progress is committed in one transaction and the effects in the next", "billing", _progress_before_effects, _rules(Rule.UNSEEN), {}
    ),
    "effects before progress": Bug(
        "effects are committed in one transaction and the progress in the next", "billing", _effects_before_progress, _rules(Rule.DOUBLED), {}
    ),
    "dedupe by the last number": Bug(
        "the log takes what is not above a producer's last number for a duplicate, over topics and partitions", "producer",
        _dedupe_by_the_last, _rules(Rule.LOST), {},
    ),
    "sent again as new": Bug(
        "what was not answered is sent again under new numbers", "producer", _sent_again_as_new, _rules(Rule.DOUBLED), {}
    ),
    "relay without lease": Bug(
        "every process sends the outbox, under numbers that it keeps for itself", "billing",
        _relay_without_lease, _rules(Rule.LOST, Rule.DOUBLED), {"roll": 1, "kill": 2}, seconds=9.0,
    ),
    "relay renumbers": Bug(
        "a relay that starts gives new numbers to what its predecessor may have sent", "billing", _relay_renumbers, _rules(Rule.DOUBLED), {}
    ),
    "outbox emptied first": Bug(
        "rows leave the outbox before the log has them", "billing", _outbox_emptied_first, _rules(Rule.LOST), {}
    ),
    "epoch checked outside": Bug(
        "the epoch is checked before the transaction that commits, and not in it", "billing",
        _epoch_outside, _rules(Rule.STALE, Rule.DOUBLED, Rule.REORDERED, Rule.UNSEEN, Rule.PHANTOM), {"stop": 1}, seconds=6.0,
    ),
    "lanes by topic and key": Bug(
        "events of one key that come from two topics run at once", "billing", _lanes_by_topic, _rules(Rule.OVERLAP), {}
    ),
    "unfinished dropped": Bug(
        "whoever takes a slot over forgets which records below the progress were not finished", "billing",
        _unfinished_dropped, _rules(Rule.UNSEEN), {},
    ),
    "blocked key overtaken": Bug(
        "the newest event of a blocked key is tried before the one that failed", "billing", _blocked_key_overtaken, _rules(Rule.REORDERED), {}
    ),
    "blocked key's queue dropped": Bug(
        "what waited behind a failed event is dropped when that succeeds", "billing", _queue_dropped, _rules(Rule.UNSEEN), {}
    ),
    "offset reused": Bug(
        "a partition that retention has emptied starts at offset 0 again", "janitor",
        _offset_reused, _rules(Rule.OFFSET_REUSED, Rule.REORDERED, Rule.DOUBLED, Rule.UNSEEN), {}, rate=60.0, kept_behind=0,
    ),
    "neighbour undone": Bug(
        "a unit in conflict takes the unit before it in its group along", "billing", _neighbour_undone, _rules(Rule.UNSEEN, Rule.PHANTOM), {}
    ),
    "reads not validated": Bug(
        "a unit is committed though what it read has changed", "billing", _reads_not_validated, _rules(Rule.UNSEEN), {}
    ),
    "record skipped": Bug("a reader passes over a record now and then", "shipping", _record_skipped, _LOSES, {}),
}  # fmt: skip
"""Name → bug."""
