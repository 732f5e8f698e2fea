"""Handling events again: a new generation of a subscription for a replay, or its progress set back for a rewind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from everlog.drivers.postgres.database import Connection
from everlog.position import Offset, TopicPartition
from everlog.record import StoredRecord
from everlog.rules.again import At, back, check_back, check_stored, grown, handled_again, muted_after, with_fresh
from everlog.store import Again, Fresh, Muted
from everlog.stores.postgres.commit import PUT_PROGRESS
from everlog.stores.postgres.names import names
from everlog.stores.postgres.rows import columns, first_of, rows_of, run

_encode: Final = msgspec.msgpack.Encoder().encode
_decode_offsets: Final = msgspec.msgpack.Decoder(list[Offset]).decode
_decode_fresh: Final = msgspec.msgpack.Decoder(list[Fresh]).decode
_decode_record: Final = msgspec.msgpack.Decoder(StoredRecord).decode

_MUTED: Final = """
    SELECT m.topic, m.partition, m.through, m.but, m.fresh FROM muted AS m
    JOIN subscription AS s ON s.name = m.subscription AND s.generation = m.generation
    WHERE m.subscription = %s AND (%s::integer IS NULL OR m.partition = %s) ORDER BY m.topic, m.partition
"""
_MUTE: Final = """
    INSERT INTO muted SELECT * FROM unnest(%s::text[], %s::integer[], %s::text[], %s::integer[], %s::bigint[], %s::bytea[], %s::bytea[])
"""
_COLLECT: Final = """
    DELETE FROM state WHERE ctid = ANY(ARRAY(
        SELECT s.ctid FROM subscription AS o JOIN state AS s ON s.subscription = o.name AND s.generation < o.generation LIMIT %s
    ))
"""


async def start_again(connection: Connection, again: Again) -> int:
    """Carry out `Store.start_again` inside its transaction."""
    name = again.subscription
    known = (await names(connection)).generations
    check_stored(name, known)
    old = known[name]
    stood = await _progress(connection, name, old)
    check_back(again, stood)
    held = await _held(connection, name)
    new = old + 1 if again.rebuilds else old
    # A lease that nobody has is fenced at its next commit, and taken anew under the next epoch.
    await run(connection, "UPDATE lease SET member = NULL WHERE subscription = %s", (name,))
    await run(connection, "DELETE FROM attempt WHERE subscription = %s", (name,))
    if again.rebuilds:
        muted = {one.where: one for one in await muted_of(connection, name)}
        rows = [muted_after(where, at, muted.get(where), held.get(where, {})) for where, at in stood.items()]
        await _mute(connection, name, new, [with_fresh(row, again) for row in rows])
        await _grow(connection, again)
        if again.keep_state:
            kept = "UPDATE state SET generation = %s WHERE subscription = %s AND generation = %s"
            await run(connection, kept, (new, name, old))
        await run(connection, "UPDATE subscription SET generation = %s WHERE name = %s", (new, name))
        await run(connection, "UPDATE held SET generation = %s WHERE subscription = %s", (new, name))
    else:
        await run(connection, "DELETE FROM muted WHERE subscription = %s", (name,))
    await run(connection, "DELETE FROM progress WHERE subscription = %s", (name,))
    progress = [(name, new, where.partition, where.topic, *back(at, again.after.get(where))) for where, at in stood.items()]
    await run(connection, PUT_PROGRESS, columns(progress, 7))
    await run(connection, "DELETE FROM held WHERE id = ANY(%s)", (list(handled_again(again, held)),))
    await run(connection, "DELETE FROM request WHERE subscription = %s AND held_id NOT IN (SELECT id FROM held)", (name,))
    return new


async def _progress(connection: Connection, name: str, generation: int) -> Mapping[TopicPartition, At]:
    rows = await rows_of(
        connection,
        "SELECT topic, partition, through, unfinished, dedupe FROM progress WHERE subscription = %s AND generation = %s",
        (name, generation),
    )
    return {
        TopicPartition(topic, partition): At(Offset(through), frozenset(_decode_offsets(unfinished)), bytes(dedupe))
        for topic, partition, through, unfinished, dedupe in rows
    }


async def _held(connection: Connection, name: str) -> Mapping[TopicPartition, Mapping[Offset, int]]:
    """Return the rows of held records, by where these stand in the log."""
    found: dict[TopicPartition, dict[Offset, int]] = {}
    for row, body in await rows_of(connection, "SELECT id, record FROM held WHERE subscription = %s", (name,)):
        record = _decode_record(body)
        found.setdefault(TopicPartition(record.topic, record.partition), {})[record.offset] = row
    return found


async def _grow(connection: Connection, again: Again) -> None:
    """Remember the types that the subscription handles from now on."""
    if not again.grown:
        return
    text: str = await first_of(connection, "SELECT types FROM subscription WHERE name = %s", (again.subscription,))
    types = grown(msgspec.json.decode(text, type=dict[str, list[str]]), again)
    put = "UPDATE subscription SET types = %s WHERE name = %s"
    await run(connection, put, (msgspec.json.encode(types).decode(), again.subscription))


async def _mute(connection: Connection, name: str, generation: int, muted: Sequence[Muted]) -> None:
    await run(connection, "DELETE FROM muted WHERE subscription = %s", (name,))
    rows = [(name, generation, *one.where, one.through, _encode(list(one.but)), _encode(list(one.fresh))) for one in muted]
    await run(connection, _MUTE, columns(rows, 7))


async def muted_of(connection: Connection, name: str, partition: int | None = None) -> Sequence[Muted]:
    """Return what a subscription does not publish again; of one partition of all topics, or of all."""
    rows = await rows_of(connection, _MUTED, (name, partition, partition))
    return [
        Muted(TopicPartition(topic, number), Offset(through), _decode_offsets(but), _decode_fresh(fresh))
        for topic, number, through, but, fresh in rows
    ]


async def has_former(connection: Connection) -> bool:
    """Tell whether there is state of a former generation."""
    query = "SELECT 1 FROM subscription AS o JOIN state AS s ON s.subscription = o.name AND s.generation < o.generation LIMIT 1"
    return await first_of(connection, query) is not None


async def collect(connection: Connection, limit: int) -> int:
    """Carry out `Store.collect` inside its transaction."""
    return await run(connection, _COLLECT, (limit,))
