"""Handling events again: a new generation of a subscription for a replay, or its progress set back for a rewind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import apsw
import msgspec

from everlog.drivers.sqlite.rows import first_of, rows_of
from everlog.position import Offset, TopicPartition
from everlog.record import StoredRecord
from everlog.rules.again import At, back, check_back, check_stored, grown, handled_again, muted_after, with_fresh
from everlog.store import Again, Fresh, Muted
from everlog.stores.sqlite.names import names

_encode: Final = msgspec.msgpack.Encoder().encode
_decode_offsets: Final = msgspec.msgpack.Decoder(list[Offset]).decode
_decode_fresh: Final = msgspec.msgpack.Decoder(list[Fresh]).decode
_decode_record: Final = msgspec.msgpack.Decoder(StoredRecord).decode


def start_again(connection: apsw.Connection, again: Again) -> int:
    """Carry out `Store.start_again` inside the transaction of its group."""
    name = again.subscription
    known = names(connection).generations
    check_stored(name, known)
    old = known[name]
    stood = _progress(connection, name, old)
    check_back(again, stood)
    held = _held(connection, name)
    new = old + 1 if again.rebuilds else old
    # A lease that nobody has is fenced at its next commit, and taken anew under the next epoch.
    connection.execute("UPDATE lease SET member = NULL WHERE subscription = ?", (name,))
    connection.execute("DELETE FROM attempt WHERE subscription = ?", (name,))
    if again.rebuilds:
        muted = {one.where: one for one in muted_of(connection, name)}
        rows = [muted_after(where, at, muted.get(where), held.get(where, {})) for where, at in stood.items()]
        _mute(connection, name, new, [with_fresh(row, again) for row in rows])
        _grow(connection, again)
        if again.keep_state:
            connection.execute("UPDATE state SET generation = ? WHERE subscription = ? AND generation = ?", (new, name, old))
        connection.execute("UPDATE subscription SET generation = ? WHERE name = ?", (new, name))
        connection.execute("UPDATE held SET generation = ? WHERE subscription = ?", (new, name))
    else:
        connection.execute("DELETE FROM muted WHERE subscription = ?", (name,))
    connection.execute("DELETE FROM progress WHERE subscription = ?", (name,))
    connection.executemany(
        "INSERT INTO progress (subscription, generation, partition, topic, through, unfinished, dedupe) VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(name, new, where.partition, where.topic, *back(at, again.after.get(where))) for where, at in stood.items()],
    )
    connection.executemany("DELETE FROM held WHERE id = ?", [(row,) for row in handled_again(again, held)])
    connection.execute("DELETE FROM request WHERE subscription = ? AND held_id NOT IN (SELECT id FROM held)", (name,))
    return new


def _progress(connection: apsw.Connection, name: str, generation: int) -> Mapping[TopicPartition, At]:
    rows = rows_of(
        connection,
        "SELECT topic, partition, through, unfinished, dedupe FROM progress WHERE subscription = ? AND generation = ?",
        (name, generation),
    )
    return {
        TopicPartition(topic, partition): At(Offset(through), frozenset(_decode_offsets(unfinished)), dedupe)
        for topic, partition, through, unfinished, dedupe in rows
    }


def _held(connection: apsw.Connection, name: str) -> Mapping[TopicPartition, Mapping[Offset, int]]:
    """Return the rows of held records, by where these stand in the log."""
    found: dict[TopicPartition, dict[Offset, int]] = {}
    for row, body in rows_of(connection, "SELECT id, record FROM held WHERE subscription = ?", (name,)):
        record = _decode_record(body)
        found.setdefault(TopicPartition(record.topic, record.partition), {})[record.offset] = row
    return found


def _grow(connection: apsw.Connection, again: Again) -> None:
    """Remember the types that the subscription handles from now on."""
    if not again.grown:
        return
    ((text,),) = rows_of(connection, "SELECT types FROM subscription WHERE name = ?", (again.subscription,))
    types = grown(msgspec.json.decode(text, type=dict[str, list[str]]), again)
    connection.execute(
        "UPDATE subscription SET types = ? WHERE name = ?", (msgspec.json.encode(types).decode(), again.subscription)
    )


def _mute(connection: apsw.Connection, name: str, generation: int, muted: Sequence[Muted]) -> None:
    connection.execute("DELETE FROM muted WHERE subscription = ?", (name,))
    connection.executemany(
        "INSERT INTO muted VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(name, generation, *one.where, one.through, _encode(list(one.but)), _encode(list(one.fresh))) for one in muted],
    )


def muted_of(connection: apsw.Connection, name: str, partition: int | None = None) -> Sequence[Muted]:
    """Return what a subscription does not publish again; of one partition of all topics, or of all."""
    rows = rows_of(
        connection,
        "SELECT topic, partition, through, but, fresh FROM muted WHERE subscription = ?1 AND generation = "
        "(SELECT generation FROM subscription WHERE name = ?1) AND (?2 IS NULL OR partition = ?2) ORDER BY topic, partition",
        (name, partition),
    )
    return [
        Muted(TopicPartition(topic, number), Offset(through), _decode_offsets(but), _decode_fresh(fresh))
        for topic, number, through, but, fresh in rows
    ]


def has_former(connection: apsw.Connection) -> bool:
    """Tell whether there is state of a former generation."""
    sql = "SELECT 1 FROM subscription AS o JOIN state AS s ON s.subscription = o.name AND s.generation < o.generation LIMIT 1"
    return first_of(connection, sql) is not None


def collect(connection: apsw.Connection, limit: int) -> int:
    """Carry out `Store.collect` inside the transaction of its group."""
    connection.execute(
        "DELETE FROM state WHERE (subscription, generation, state, key) IN (SELECT s.subscription, s.generation, s.state, s.key "
        "FROM subscription AS o JOIN state AS s ON s.subscription = o.name AND s.generation < o.generation LIMIT ?)",
        (limit,),
    )
    collected: int = first_of(connection, "SELECT changes()")
    return collected
