"""The references: what somebody writes by hand who has this one event, this one file, and nothing else to care about.

They keep Everlog's chunk layout (see `everlog.codec`) and its chunk table, with msgspec, apsw and zlib, and without any of its code
but the hash of a key. `tests/benchmarks` checks that each side reads what the other wrote.
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from array import array
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw
import msgspec

from benchmarks.sample import OrderPlaced
from everlog.key import partition_of

T = TypeVar("T")

PARTITIONS: Final = 8
_TYPE: Final = "bench.order_placed/1"
_SOURCE: Final = "publisher"
_HEAD: Final = struct.Struct("<4sBBBBIIIII")
_TABLES: Final = """
    CREATE TABLE chunk (
        id INTEGER PRIMARY KEY, topic INTEGER NOT NULL, part INTEGER NOT NULL,
        first INTEGER NOT NULL, last INTEGER NOT NULL, logged_at_us INTEGER NOT NULL, body BLOB NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX chunk_place ON chunk (topic, part, last);
"""
_encode_json: Final = msgspec.json.Encoder().encode
_encode_msgpack: Final = msgspec.msgpack.Encoder().encode
_decode_envelope: Final = msgspec.msgpack.Decoder(list[Any]).decode
_decode_events: Final = msgspec.json.Decoder(list[OrderPlaced]).decode


def validated(events: list[OrderPlaced]) -> list[bytes]:
    """Return each event as JSON, after proof that the list reads back equal."""
    return validated_by(_decode_events, events)


def validated_by(decode: Callable[[bytes], list[T]], events: list[T]) -> list[bytes]:
    """Return the same for events of any class, which `decode` reads from a JSON array."""
    datas = [_encode_json(event) for event in events]
    if decode(b"[" + b",".join(datas) + b"]") != events:
        raise ValueError("an event does not survive JSON")
    return datas


def chunk_of(datas: Sequence[bytes], keys: Sequence[str], number: int, now_us: int, *, type_: str = _TYPE) -> bytes:
    """Return a chunk: header, offsets, envelope as columns, and the data as one JSON array."""
    count = len(datas)
    envelope = _encode_msgpack(
        (
            [(type_, 0)],
            None,
            keys,
            [now_us] * count,
            [_SOURCE],
            None,
            [("by-hand", number, count)],
            now_us,
            None,
            None,
            None,
            None,
            None,
            None,
        )
    )
    data = b"[" + b",".join(datas) + b"]"
    starts = array("I", accumulate([len(one) + 1 for one in datas[:-1]], initial=1)).tobytes()
    rest = starts + envelope + data
    head = _HEAD.pack(b"EVCK", 1, 1, 0, 0, count, 0, len(envelope), len(data), 0)[:-4]
    return head + zlib.crc32(rest, zlib.crc32(head)).to_bytes(4, "little") + rest


def events_of(body: bytes) -> tuple[list[Any], list[OrderPlaced]]:
    """Return the envelope and the events of a chunk whose checksum fits."""
    (_, _, _, _, _, count, extension, packed, length, crc) = _HEAD.unpack_from(body)
    view = memoryview(body)
    if zlib.crc32(view[_HEAD.size :], zlib.crc32(view[: _HEAD.size - 4])) != crc:
        raise ValueError("the checksum does not fit")
    at = _HEAD.size + 4 * count + extension
    return _decode_envelope(view[at : at + packed]), _decode_events(view[at + packed : at + packed + length])


def open_file(path: Path) -> apsw.Connection:
    """Open a new file with the chunk table alone, synced at every commit as the log's is."""
    connection = apsw.Connection(os.fspath(path))
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", "full")
    connection.execute(_TABLES).fetchall()
    return connection


def insert_batch(connection: apsw.Connection, number: int, events: list[OrderPlaced], nexts: list[int]) -> None:
    """Store one batch in one transaction: validated, split by the key's partition, one chunk each.

    Args:
        connection: Where to.
        number: Of the commit.
        events: The batch.
        nexts: Each partition's next offset; moved on.
    """
    now_us = time.time_ns() // 1000
    datas: list[list[bytes]] = [[] for _ in range(PARTITIONS)]
    keys: list[list[str]] = [[] for _ in range(PARTITIONS)]
    for event, data in zip(events, validated(events), strict=True):
        key = event.customer_id
        partition = partition_of(key, PARTITIONS)
        datas[partition].append(data)
        keys[partition].append(key)
    insert_chunks(connection, number, datas, keys, nexts, now_us)


def insert_chunks(
    connection: apsw.Connection,
    number: int,
    datas: Sequence[Sequence[bytes]],
    keys: Sequence[Sequence[str]],
    nexts: list[int],
    now_us: int,
    *,
    type_: str = _TYPE,
) -> None:
    """Store a chunk for each partition that has records, in one transaction."""
    rows: list[tuple[int | bytes, ...]] = []
    for partition in range(PARTITIONS):
        if datas[partition]:
            first = nexts[partition]
            nexts[partition] += len(datas[partition])
            body = chunk_of(datas[partition], keys[partition], first, now_us, type_=type_)
            rows.append((number << 20 | len(rows), 1, partition, first, nexts[partition] - 1, now_us, body))
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany("INSERT INTO chunk VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    connection.execute("COMMIT")


def append_synced(fd: int, data: bytes) -> None:
    """Append to a file and sync it."""
    os.write(fd, data)
    os.fdatasync(fd)
