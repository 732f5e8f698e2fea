"""Who the store is, and whose: names remembered at a start, forgotten when a subscription is retired, and a new incarnation."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from uuid import UUID

import apsw
import msgspec

from everlog.drivers.sqlite.rows import first_of, rows_of
from everlog.errors import CommandRefused, StartRefused, SubscriptionMissing
from everlog.position import Offset, TopicPartition
from everlog.store import AppSpec, Incarnation, Landmark, Progress, Registered, SubscriptionSpec, passed_by
from everlog.stores.sqlite.leases import Now, live_members
from everlog.stores.sqlite.names import names
from everlog.stores.sqlite.outbox import start_anew

_FIRST_GENERATION = 1
_OF_A_SUBSCRIPTION = ("state", "owned", "progress", "muted", "held", "holding", "request", "timer", "lease", "attempt", "skipped")


def register(connection: apsw.Connection, app: AppSpec, log: UUID, accept: Container[str], now: Now) -> Registered:
    """Carry out `Store.register` inside the transaction of its group."""
    ((name, log_bytes),) = rows_of(connection, "SELECT app, log FROM meta")
    if name is not None and name != app.name:
        raise StartRefused(
            f"the store belongs to app {name!r}, and this is {app.name!r}: give it a store of its own with --store-url, "
            f"or put {{app}} into the URL"
        )
    rows = rows_of(connection, "SELECT name, types FROM subscription ORDER BY name")
    stored = {subscription: msgspec.json.decode(types, type=dict[str, list[str]]) for subscription, types in rows}
    declared = {spec.name for spec in app.subscriptions}
    for spec in app.subscriptions:
        old = spec.renamed_from
        if old is not None and old in stored and old not in declared and spec.name not in stored:
            _rename(connection, old, spec.name, now)
            stored[spec.name] = stored.pop(old)
    for subscription in stored:
        if subscription not in declared:
            raise SubscriptionMissing(app.name, subscription)
    connection.execute("UPDATE meta SET app = ?, log = coalesce(log, ?)", (app.name, log.bytes))
    grown: dict[str, Sequence[str]] = {}
    for spec in app.subscriptions:
        more = _grown(connection, spec, stored.get(spec.name))
        if more:
            grown[spec.name] = [name for of_topic in more.values() for name in of_topic]
        _remember(connection, spec, {topic: [name for name in types if name not in accept] for topic, types in more.items()})
    return Registered(UUID(bytes=log_bytes) if log_bytes is not None else None, frozenset(declared - stored.keys()), grown)


def _rename(connection: apsw.Connection, old: str, new: str, now: Now) -> None:
    at_work = [number for number, handles in live_members(connection, now).items() if old in handles]
    if at_work:
        raise StartRefused(
            f"subscription {new!r} is called {old!r} in the store, and {len(at_work)} process(es) with the older code work on it: stop them first"
        )
    for table in _OF_A_SUBSCRIPTION:
        connection.execute(f"UPDATE {table} SET subscription = ? WHERE subscription = ?", (new, old))
    connection.execute("UPDATE subscription SET name = ? WHERE name = ?", (new, old))


def _grown(
    connection: apsw.Connection, spec: SubscriptionSpec, stored: Mapping[str, Sequence[str]] | None
) -> Mapping[str, Sequence[str]]:
    """Return the types that the subscription did not handle before, by topic: where it has passed events of theirs by."""
    if stored is None:
        return {}
    progressed = {
        topic for (topic,) in rows_of(connection, "SELECT DISTINCT topic FROM progress WHERE subscription = ?", (spec.name,))
    }
    return {topic: types for topic, types in passed_by(spec.types, stored).items() if topic in progressed}


def _remember(connection: apsw.Connection, spec: SubscriptionSpec, but: Mapping[str, Sequence[str]]) -> None:
    # A type that the code dropped is forgotten: it is passed by from now on, so that its return is a growth again.
    types = {topic: [name for name in of_topic if name not in but.get(topic, ())] for topic, of_topic in spec.types.items()}
    connection.execute(
        "INSERT INTO subscription VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET types = excluded.types",
        # A store that was made anew gives the same ids as the one that was lost, so the former name counts in it too.
        (spec.name, _FIRST_GENERATION, msgspec.json.encode(types).decode(), spec.renamed_from or spec.name),
    )
    connection.executemany(
        "INSERT INTO owned VALUES (?, ?) ON CONFLICT (state) DO UPDATE SET subscription = excluded.subscription",
        [(state, spec.name) for state in spec.states],
    )


def retire(connection: apsw.Connection, subscription: str, now: Now) -> None:
    """Carry out `Store.retire` inside the transaction of its group."""
    known = names(connection).generations
    if subscription not in known:
        raise CommandRefused(f"subscription {subscription!r} is not in the store: it holds {', '.join(sorted(known)) or 'none'}")
    at_work = [number for number, handles in live_members(connection, now).items() if subscription in handles]
    if at_work:
        raise CommandRefused(f"subscription {subscription!r} is being handled by {len(at_work)} process(es): stop them first")
    for table in _OF_A_SUBSCRIPTION:
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
    if at_work := live_members(connection, now):
        raise CommandRefused(f"{len(at_work)} process(es) work on the store: stop them first")
    last: int = first_of(connection, "SELECT incarnation FROM meta")
    if new.number <= last:
        raise CommandRefused(f"expected an incarnation above {last}, found {new.number}: nothing was changed")
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
