"""Who the store is, and whose: names remembered at a start, forgotten when a subscription is retired, and a new incarnation."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from typing import Any, Final, cast
from uuid import UUID

import msgspec

from everlog.drivers.postgres.database import Connection
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
from everlog.stores.postgres.leases import Here, live_members
from everlog.stores.postgres.names import names
from everlog.stores.postgres.outbox import start_anew
from everlog.stores.postgres.rows import columns, first_of, rows_of, run

_REMEMBER: Final = """
    INSERT INTO subscription VALUES (%s, %s, %s, %s) ON CONFLICT (name) DO UPDATE SET types = excluded.types
"""
_OWN: Final = "INSERT INTO owned VALUES (%s, %s) ON CONFLICT (state) DO UPDATE SET subscription = excluded.subscription"
_BEGIN: Final = """
    INSERT INTO progress
    SELECT * FROM unnest(%s::text[], %s::integer[], %s::integer[], %s::text[], %s::bigint[], %s::bytea[], %s::bytea[])
    ON CONFLICT (subscription, generation, partition, topic) DO NOTHING
"""
_SET_BACK: Final = """
    UPDATE progress SET through = %s, unfinished = %s, dedupe = %s
    WHERE subscription = %s AND generation = %s AND partition = %s AND topic = %s
"""
_KEEP: Final = """
    INSERT INTO landmark SELECT * FROM unnest(%s::text[], %s::integer[], %s::bigint[], %s::bigint[])
    ON CONFLICT (topic, partition) DO UPDATE SET "offset" = excluded."offset", logged_at_us = excluded.logged_at_us
"""


async def register(connection: Connection, app: AppSpec, log: UUID, accept: Container[str], here: Here) -> Registered:
    """Carry out `Store.register` inside its transaction."""
    ((name, stored_log),) = await rows_of(connection, "SELECT app, log FROM service")
    check_app(name, app)
    rows = await rows_of(connection, "SELECT name, types FROM subscription ORDER BY name")
    stored = {subscription: msgspec.json.decode(types, type=dict[str, list[str]]) for subscription, types in rows}
    for old, new in renamed(app, stored):
        check_idle(old, new, await live_members(connection, here))
        for table in OF_A_SUBSCRIPTION:
            await _of(connection, f"UPDATE {table} SET subscription = %s WHERE subscription = %s", (new, old))
        await run(connection, "UPDATE subscription SET name = %s WHERE name = %s", (new, old))
        stored[new] = stored.pop(old)
    check_declared(app, stored)
    await run(connection, "UPDATE service SET app = %s, log = coalesce(log, %s)", (app.name, log))
    more_types: dict[str, Sequence[str]] = {}
    for spec in app.subscriptions:
        more = grown(spec, stored.get(spec.name), await _progressed(connection, spec.name))
        if more:
            more_types[spec.name] = [one for of_topic in more.values() for one in of_topic]
        await _remember(connection, spec, {topic: [one for one in types if one not in accept] for topic, types in more.items()})
    return Registered(stored_log, frozenset({spec.name for spec in app.subscriptions} - stored.keys()), more_types)


async def _of(connection: Connection, query: str, values: Sequence[object]) -> None:
    """Run a statement on one of the tables named in `OF_A_SUBSCRIPTION`."""
    await run(connection, cast("Any", query), values)


async def _progressed(connection: Connection, subscription: str) -> Collection[str]:
    """Return the topics in which a subscription has progress."""
    rows = await rows_of(connection, "SELECT DISTINCT topic FROM progress WHERE subscription = %s", (subscription,))
    return {topic for (topic,) in rows}


async def _remember(connection: Connection, spec: SubscriptionSpec, but: Mapping[str, Sequence[str]]) -> None:
    types = msgspec.json.encode(remembered(spec, but)).decode()
    # A store that was made anew gives the same ids as the one that was lost, so the former name counts in it too.
    await run(connection, _REMEMBER, (spec.name, FIRST_GENERATION, types, spec.renamed_from or spec.name))
    for state in spec.states:
        await run(connection, _OWN, (state, spec.name))


async def retire(connection: Connection, subscription: str, here: Here) -> None:
    """Carry out `Store.retire` inside its transaction."""
    check_retired(subscription, (await names(connection)).generations, await live_members(connection, here))
    for table in OF_A_SUBSCRIPTION:
        await _of(connection, f"DELETE FROM {table} WHERE subscription = %s", (subscription,))
    await run(connection, "DELETE FROM subscription WHERE name = %s", (subscription,))


async def begin(connection: Connection, subscription: str, progress: Sequence[Progress]) -> None:
    """Carry out `Store.begin` inside its transaction."""
    generation = (await names(connection)).generation(subscription)
    rows = [
        (
            subscription, generation, at.where.partition, at.where.topic, at.through,
            msgspec.msgpack.encode(sorted(at.unfinished)), at.dedupe,
        )
        for at in progress
    ]  # fmt: skip
    await run(connection, _BEGIN, columns(rows, 7))


async def landmarks(connection: Connection) -> Sequence[Landmark]:
    """Return what was kept last, by topic and partition."""
    rows = await rows_of(connection, 'SELECT topic, partition, "offset", logged_at_us FROM landmark ORDER BY topic, partition')
    return [Landmark(TopicPartition(topic, partition), Offset(offset), time_us) for topic, partition, offset, time_us in rows]


async def keep_landmarks(connection: Connection, kept: Sequence[Landmark]) -> None:
    """Carry out `Store.keep_landmarks` inside its transaction."""
    newest = {one.where: (*one.where, one.offset, one.logged_at_us) for one in kept}
    await run(connection, _KEEP, columns(list(newest.values()), 4))


async def reincarnate(connection: Connection, new: Incarnation, here: Here) -> None:
    """Carry out `Store.reincarnate` inside its transaction."""
    last: int = await first_of(connection, "SELECT incarnation FROM service")
    check_incarnation(new.number, last, await live_members(connection, here))
    await run(connection, "UPDATE service SET incarnation = %s", (new.number,))
    # A silent process that wakes up finds no lease of its own, and commits nothing. Epochs are never given twice.
    for table in ("lease", "member", "attempt", "landmark"):
        await _of(connection, f"DELETE FROM {table}", ())
    await keep_landmarks(connection, new.landmarks)
    await start_anew(connection, new.sent)
    known = await names(connection)
    for subscription, at in new.progress:
        unfinished = msgspec.msgpack.encode(sorted(at.unfinished))
        place = (subscription, known.generation(subscription), at.where.partition, at.where.topic)
        await run(connection, _SET_BACK, (at.through, unfinished, at.dedupe, *place))
