"""Who the store is, and whose: names remembered at a start, forgotten when a subscription is retired, and a new incarnation."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from uuid import UUID

import apsw
import msgspec

from everlog.drivers.sqlite.rows import first_of, rows_of
from everlog.position import Offset, TopicPartition
from everlog.rules.registering import (
    FIRST_GENERATION,
    OF_A_SUBSCRIPTION,
    check_app,
    check_declared,
    check_idle,
    check_incarnation,
    check_retired,
    grown,
    remembered,
    renamed,
)
from everlog.store import AppSpec, Incarnation, Landmark, Progress, Registered, SubscriptionSpec
from everlog.stores.sqlite.leases import Now, live_members
from everlog.stores.sqlite.names import names
from everlog.stores.sqlite.outbox import start_anew


def register(connection: apsw.Connection, app: AppSpec, log: UUID, accept: Container[str], now: Now) -> Registered:
    """Carry out `Store.register` inside the transaction of its group."""
    ((name, log_bytes),) = rows_of(connection, "SELECT app, log FROM meta")
    check_app(name, app)
    rows = rows_of(connection, "SELECT name, types FROM subscription ORDER BY name")
    stored = {subscription: msgspec.json.decode(types, type=dict[str, list[str]]) for subscription, types in rows}
    for old, new in renamed(app, stored):
        _rename(connection, old, new, now)
        stored[new] = stored.pop(old)
    check_declared(app, stored)
    connection.execute("UPDATE meta SET app = ?, log = coalesce(log, ?)", (app.name, log.bytes))
    more_types: dict[str, Sequence[str]] = {}
    for spec in app.subscriptions:
        more = grown(spec, stored.get(spec.name), _progressed(connection, spec.name))
        if more:
            more_types[spec.name] = [name for of_topic in more.values() for name in of_topic]
        _remember(connection, spec, {topic: [name for name in types if name not in accept] for topic, types in more.items()})
    new_ones = frozenset({spec.name for spec in app.subscriptions} - stored.keys())
    return Registered(UUID(bytes=log_bytes) if log_bytes is not None else None, new_ones, more_types)


def _rename(connection: apsw.Connection, old: str, new: str, now: Now) -> None:
    check_idle(old, new, live_members(connection, now))
    for table in OF_A_SUBSCRIPTION:
        connection.execute(f"UPDATE {table} SET subscription = ? WHERE subscription = ?", (new, old))
    connection.execute("UPDATE subscription SET name = ? WHERE name = ?", (new, old))


def _progressed(connection: apsw.Connection, subscription: str) -> Collection[str]:
    """Return the topics in which a subscription has progress."""
    return {
        topic for (topic,) in rows_of(connection, "SELECT DISTINCT topic FROM progress WHERE subscription = ?", (subscription,))
    }


def _remember(connection: apsw.Connection, spec: SubscriptionSpec, but: Mapping[str, Sequence[str]]) -> None:
    connection.execute(
        "INSERT INTO subscription VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET types = excluded.types",
        # A store that was made anew gives the same ids as the one that was lost, so the former name counts in it too.
        (spec.name, FIRST_GENERATION, msgspec.json.encode(remembered(spec, but)).decode(), spec.renamed_from or spec.name),
    )
    connection.executemany(
        "INSERT INTO owned VALUES (?, ?) ON CONFLICT (state) DO UPDATE SET subscription = excluded.subscription",
        [(state, spec.name) for state in spec.states],
    )


def retire(connection: apsw.Connection, subscription: str, now: Now) -> None:
    """Carry out `Store.retire` inside the transaction of its group."""
    check_retired(subscription, names(connection).generations, live_members(connection, now))
    for table in OF_A_SUBSCRIPTION:
        connection.execute(f"DELETE FROM {table} WHERE subscription = ?", (subscription,))
    connection.execute("DELETE FROM subscription WHERE name = ?", (subscription,))


def begin(connection: apsw.Connection, subscription: str, progress: Sequence[Progress]) -> None:
    """Carry out `Store.begin` inside the transaction of its group."""
    generation = names(connection).generation(subscription)
    connection.executemany(
        "INSERT INTO progress (subscription, generation, partition, topic, through, unfinished, dedupe) VALUES (?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (subscription, generation, partition, topic) DO NOTHING",
        [
            (
                subscription, generation, at.where.partition, at.where.topic, at.through,
                msgspec.msgpack.encode(sorted(at.unfinished)), at.dedupe,
            )
            for at in progress
        ],
    )  # fmt: skip


def landmarks(connection: apsw.Connection) -> Sequence[Landmark]:
    """Return what was kept last, by topic and partition."""
    rows = rows_of(connection, 'SELECT topic, partition, "offset", logged_at_us FROM landmark ORDER BY topic, partition')
    return [Landmark(TopicPartition(topic, partition), Offset(offset), time_us) for topic, partition, offset, time_us in rows]


def keep_landmarks(connection: apsw.Connection, kept: Sequence[Landmark]) -> None:
    """Carry out `Store.keep_landmarks` inside the transaction of its group."""
    connection.executemany(
        "INSERT OR REPLACE INTO landmark VALUES (?, ?, ?, ?)", [(*one.where, one.offset, one.logged_at_us) for one in kept]
    )


def reincarnate(connection: apsw.Connection, new: Incarnation, now: Now) -> None:
    """Carry out `Store.reincarnate` inside the transaction of its group."""
    last: int = first_of(connection, "SELECT incarnation FROM meta")
    check_incarnation(new.number, last, live_members(connection, now))
    connection.execute("UPDATE meta SET incarnation = ?", (new.number,))
    # A silent process that wakes up finds no lease of its own, and commits nothing. Epochs are never given twice.
    connection.execute("DELETE FROM lease; DELETE FROM member; DELETE FROM attempt; DELETE FROM landmark").fetchall()
    keep_landmarks(connection, new.landmarks)
    start_anew(connection, new.sent)
    known = names(connection)
    connection.executemany(
        "UPDATE progress SET through = ?, unfinished = ?, dedupe = ? "
        "WHERE subscription = ? AND generation = ? AND partition = ? AND topic = ?",
        [
            (
                at.through, msgspec.msgpack.encode(sorted(at.unfinished)), at.dedupe,
                subscription, known.generation(subscription), at.where.partition, at.where.topic,
            )
            for subscription, at in new.progress
        ],
    )  # fmt: skip
