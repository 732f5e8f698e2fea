"""Handling events again: a new generation of a subscription for a replay, or its progress set back for a rewind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import apsw
import msgspec

from everlog.drivers.sqlite.rows import first_of, rows_of
from everlog.errors import CommandRefused
from everlog.position import BEGINNING, Offset, TopicPartition
from everlog.record import StoredRecord
from everlog.store import Again, Fresh, Muted
from everlog.stores.sqlite.names import names

_encode: Final = msgspec.msgpack.Encoder().encode
_decode_offsets: Final = msgspec.msgpack.Decoder(list[Offset]).decode
_decode_fresh: Final = msgspec.msgpack.Decoder(list[Fresh]).decode
_decode_record: Final = msgspec.msgpack.Decoder(StoredRecord).decode


class _At(NamedTuple):
    through: Offset
    unfinished: frozenset[Offset]
    dedupe: bytes


def start_again(connection: apsw.Connection, again: Again) -> int:
    """Carry out `Store.start_again` inside the transaction of its group."""
    name = again.subscription
    known = names(connection).generations
    if name not in known:
        raise CommandRefused(f"subscription {name!r} is not in the store: it holds {', '.join(sorted(known)) or 'none'}")
    old = known[name]
    stood = _progress(connection, name, old)
    for where, offset in again.after.items():
        if where not in stood:
            raise CommandRefused(
                f"subscription {name!r} has no progress in {where.topic}/{where.partition}: it begins there anyway"
            )
        if offset > stood[where].through:
            raise CommandRefused(
                f"subscription {name!r} stands at offset {stood[where].through} of {where.topic}/{where.partition}, and was to go back to "
                f"{offset}: nothing was changed"
            )
    held = _held(connection, name)
    new = old + 1 if again.rebuilds else old
    # A lease that nobody has is fenced at its next commit, and taken anew under the next epoch.
    connection.execute("UPDATE lease SET member = NULL WHERE subscription = ?", (name,))
    connection.execute("DELETE FROM attempt WHERE subscription = ?", (name,))
    if again.rebuilds:
        muted = {one.where: one for one in muted_of(connection, name)}
        rows = [_muted(where, at, muted.get(where), held.get(where, {})) for where, at in stood.items()]
        _mute(connection, name, new, [_with_fresh(row, again) for row in rows])
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
        [(name, new, where.partition, where.topic, *_back(at, again.after.get(where))) for where, at in stood.items()],
    )
    gone = [
        (row,)
        for where, rows in held.items()
        if where in again.after
        for offset, row in rows.items()
        if offset > again.after[where]
    ]
    connection.executemany("DELETE FROM held WHERE id = ?", gone)
    connection.execute("DELETE FROM request WHERE subscription = ? AND held_id NOT IN (SELECT id FROM held)", (name,))
    return new


def _progress(connection: apsw.Connection, name: str, generation: int) -> Mapping[TopicPartition, _At]:
    rows = rows_of(
        connection,
        "SELECT topic, partition, through, unfinished, dedupe FROM progress WHERE subscription = ? AND generation = ?",
        (name, generation),
    )
    return {
        TopicPartition(topic, partition): _At(Offset(through), frozenset(_decode_offsets(unfinished)), dedupe)
        for topic, partition, through, unfinished, dedupe in rows
    }


def _held(connection: apsw.Connection, name: str) -> Mapping[TopicPartition, Mapping[Offset, int]]:
    """Return the rows of held records, by where these stand in the log."""
    found: dict[TopicPartition, dict[Offset, int]] = {}
    for row, body in rows_of(connection, "SELECT id, record FROM held WHERE subscription = ?", (name,)):
        record = _decode_record(body)
        found.setdefault(TopicPartition(record.topic, record.partition), {})[record.offset] = row
    return found


def _muted(where: TopicPartition, at: _At, muted: Muted | None, held: Mapping[Offset, int]) -> Muted:
    """Return whose events were published before: of what was finished in this generation, or muted in it."""
    muted = muted or Muted(where, BEGINNING)
    candidates = {*at.unfinished, *held, *muted.but}
    through = max(at.through, muted.through)

    def is_open(offset: Offset) -> bool:
        """Not finished in this generation."""
        return offset > at.through or offset in at.unfinished or offset in held

    def is_new(offset: Offset) -> bool:
        return is_open(offset) and (offset > muted.through or offset in muted.but)

    fresh = [
        Fresh(
            one.types,
            max(one.above, at.through),
            sorted(
                offset for offset in {*candidates, *one.below} if is_open(offset) and (offset > one.above or offset in one.below)
            ),
        )
        for one in muted.fresh
    ]
    return Muted(where, through, sorted(offset for offset in candidates if offset <= through and is_new(offset)), fresh)


def _with_fresh(muted: Muted, again: Again) -> Muted:
    """Return it with the types that are handled from now on: all of their records were passed by."""
    types = again.grown.get(muted.where.topic, ())
    if not types:
        return muted
    return msgspec.structs.replace(muted, fresh=[*muted.fresh, Fresh(types, BEGINNING)])


def _grow(connection: apsw.Connection, again: Again) -> None:
    """Remember the types that the subscription handles from now on."""
    if not again.grown:
        return
    ((text,),) = rows_of(connection, "SELECT types FROM subscription WHERE name = ?", (again.subscription,))
    types = msgspec.json.decode(text, type=dict[str, list[str]])
    for topic, grown in again.grown.items():
        types[topic] = sorted({*types.get(topic, ()), *grown})
    connection.execute(
        "UPDATE subscription SET types = ? WHERE name = ?", (msgspec.json.encode(types).decode(), again.subscription)
    )


def _mute(connection: apsw.Connection, name: str, generation: int, muted: Sequence[Muted]) -> None:
    connection.execute("DELETE FROM muted WHERE subscription = ?", (name,))
    connection.executemany(
        "INSERT INTO muted VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(name, generation, *one.where, one.through, _encode(list(one.but)), _encode(list(one.fresh))) for one in muted],
    )


def _back(at: _At, after: Offset | None) -> tuple[Offset, bytes, bytes]:
    """Return through, unfinished and dedupe of a partition that begins again behind an offset; ``None``: that goes on."""
    if after is None or after >= at.through:
        return at.through, _encode(sorted(at.unfinished)), at.dedupe
    return after, _encode(sorted(offset for offset in at.unfinished if offset <= after)), b""


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
