"""Chunks: records stored, moved and decoded as one piece.

A chunk holds up to 4,096 records of one partition, in order, of any producers. Its bytes, little-endian:

    header      magic "EVCK" · format u8 · codec u8 · compression u8 · flags u8
                count u32 · extension u32 · envelope u32 · data u32 (lengths in bytes) · crc32 u32
    offsets     count × u32: where each record's slice of `data` starts
    extension   MessagePack map; empty today, unknown names in it are passed over
    envelope    MessagePack, one column per field (see `_Envelope`)
    data        one JSON array of all records' data: a slice is one record, the whole decodes in one call

The checksum covers everything but itself, and every decoding verifies it.
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final, NamedTuple, TypeVar, cast

import msgspec

from everlog.errors import FileDamaged, FileNewer
from everlog.position import Offset, TopicPartition
from everlog.record import NewRecord, StoredRecord, derived_id

MAX_CHUNK_RECORDS: Final = 4_096
MAX_CHUNK_BYTES: Final = 1 << 20

_MAGIC: Final = b"EVCK"
_FORMAT: Final = 1
_CODEC_JSON: Final = 1
_COMPRESSION_NONE: Final = 0
_HEAD: Final = struct.Struct("<4sBBBBIIIII")
_CRC_AT: Final = _HEAD.size - 4
_NO_HEADERS: Final[Mapping[str, str]] = {}

_T = TypeVar("_T")


class ProducerRun(NamedTuple):
    """Consecutive records of one producer, numbered consecutively from `first`. Without a producer: `""` and -1."""

    producer: str
    first: int
    length: int


class _Envelope(msgspec.Struct, array_like=True):
    """The records' envelopes as columns. ``None`` for a column means that all records have the default."""

    types: list[tuple[str, int]]  # type and schema fingerprint
    type_of: list[int] | None  # index into `types`; None: all are of types[0]
    keys: list[str | None]
    times_us: list[int]
    sources: list[str]
    source_of: list[int] | None
    runs: list[ProducerRun]
    logged_at_us: int | list[int]
    ids: list[str | None] | None = None
    headers: list[Mapping[str, str] | None] | None = None
    tags: list[tuple[str, ...]] | None = None
    flags: list[int] | None = None
    key_ids: list[str | None] | None = None
    tenants: list[str | None] | None = None


_envelope_encoder: Final = msgspec.msgpack.Encoder()
_envelope_decoder: Final = msgspec.msgpack.Decoder(_Envelope)


def _indexed(values: list[_T]) -> tuple[list[_T], list[int] | None]:
    """Return the distinct values and each value's index among them; no indices where one value serves all."""
    first = values[0]
    if values.count(first) == len(values):
        return [first], None
    places: dict[_T, int] = {}
    index = [places.setdefault(value, len(places)) for value in values]
    return list(places), index


def _is_all(values: Sequence[object], value: object) -> bool:
    return values.count(value) == len(values)


def encode_chunk(records: Sequence[NewRecord], runs: Sequence[ProducerRun], logged_at_us: int) -> bytes:
    """Return the bytes of one chunk.

    Args:
        records: 1 to 4,096 records of one partition, in the order of their offsets.
        runs: The producers of the records, in the same order; their counts add up to the number of records.
        logged_at_us: The log's time for all records that do not bring their own (those of `move` do).
    """
    types, type_of = _indexed([record.type for record in records])
    schemas = [record.schema for record in records]
    if type_of is None and _is_all(schemas, schemas[0]):
        typed = [(types[0], schemas[0])]
    else:
        typed, type_of = _indexed([(record.type, record.schema) for record in records])
    sources, source_of = _indexed([record.source for record in records])
    keys = [record.key for record in records]
    envelope = _Envelope(
        typed, type_of, keys, [record.time_us for record in records], sources, source_of, list(runs), logged_at_us
    )
    given = [
        record.id is not None
        or record.headers
        or record.logged_at_us is not None
        or record.tags
        or record.flags
        or record.key_id
        or record.tenant
        for record in records
    ]  # one look at each: a list for every column costs twice as much
    if any(given):
        _add_rare(envelope, records, logged_at_us)
    slices = [record.data for record in records]
    starts = array("I", accumulate([len(data) + 1 for data in slices[:-1]], initial=1))
    if sys.byteorder == "big":
        starts.byteswap()
    offsets = starts.tobytes()
    packed = _envelope_encoder.encode(envelope)
    data = b"[" + b",".join(slices) + b"]"
    head = _HEAD.pack(_MAGIC, _FORMAT, _CODEC_JSON, _COMPRESSION_NONE, 0, len(slices), 0, len(packed), len(data), 0)[:_CRC_AT]
    crc = zlib.crc32(data, zlib.crc32(packed, zlib.crc32(offsets, zlib.crc32(head))))
    return b"".join((head, crc.to_bytes(4, "little"), offsets, packed, data))


def _add_rare(envelope: _Envelope, records: Sequence[NewRecord], logged_at_us: int) -> None:
    """Add the columns of what few senders give."""
    ids = [record.id for record in records]
    if not _is_all(ids, None):
        envelope.ids = ids
    headers = [record.headers for record in records]
    if any(headers):
        envelope.headers = headers
    logged = [record.logged_at_us for record in records]
    if not _is_all(logged, None):
        envelope.logged_at_us = [logged_at_us if own is None else own for own in logged]
    if any([record.tags or record.flags or record.key_id or record.tenant for record in records]):
        envelope.tags = [record.tags for record in records]
        envelope.flags = [record.flags for record in records]
        envelope.key_ids = [record.key_id for record in records]
        envelope.tenants = [record.tenant for record in records]


class Chunk:
    """Consecutive records of one topic partition, decoded on demand.

    `start` is the index of the first record that the reader asked for: those before it were read earlier.
    Offsets are dense from `first`, unless `offsets` names each.
    """

    __slots__ = ("_envelope", "_producer_of", "_starts", "data", "first", "length", "offsets", "start", "where")

    def __init__(
        self,
        where: TopicPartition,
        first: Offset,
        envelope: _Envelope,
        data: bytes,
        starts: Sequence[int],
        *,
        offsets: Sequence[Offset] | None = None,
        start: int = 0,
    ) -> None:
        self.where = where
        self.first = first
        self.data = data
        """One JSON array of all records' data, those before `start` included."""
        self.length = len(starts)
        """Records held, those before `start` included."""
        self.offsets = offsets
        self.start = start
        self._envelope = envelope
        self._starts = starts
        self._producer_of: list[tuple[str, int]] | None = None

    @classmethod
    def from_bytes(cls, body: bytes, where: TopicPartition, first: Offset, *, after: Offset) -> Chunk:
        """Return the chunk that `encode_chunk` wrote, from the record behind offset `after` on.

        Raises:
            FileDamaged: The bytes are not those that were written.
            FileNewer: A newer Everlog wrote them.
        """
        size = _HEAD.size
        place = f"chunk at offset {first} of {where.topic}/{where.partition}"
        if len(body) < size or body[:4] != _MAGIC:
            raise FileDamaged(f"{place}: expected a chunk, found other bytes: restore the log from a backup")
        (_, form, codec, compression, _, count, extension, packed, length, crc) = _HEAD.unpack_from(body)
        if zlib.crc32(memoryview(body)[size:], zlib.crc32(memoryview(body)[:_CRC_AT])) != crc:
            raise FileDamaged(f"{place}: the checksum does not fit its {len(body)} bytes: restore the log from a backup")
        if (form, codec, compression) != (_FORMAT, _CODEC_JSON, _COMPRESSION_NONE):
            raise FileNewer(f"{place}: written as format {form}, codec {codec}, compression {compression}: upgrade Everlog")
        starts = array("I", body[size : size + 4 * count])
        if sys.byteorder == "big":
            starts.byteswap()
        at = size + 4 * count + extension
        try:
            envelope = _envelope_decoder.decode(memoryview(body)[at : at + packed])
        except msgspec.MsgspecError as error:
            raise FileDamaged(f"{place}: its envelope cannot be read: {error}") from error
        return cls(where, first, envelope, body[at + packed : at + packed + length], starts, start=max(0, after - first + 1))

    def __len__(self) -> int:
        """Return how many records are left to read: those from `start` on."""
        return self.length - self.start

    @property
    def last(self) -> Offset:
        """The offset of the last record."""
        return self.offset(self.length - 1)

    @property
    def types(self) -> Sequence[tuple[str, int]]:
        """The distinct types in it, each with its schema fingerprint."""
        return self._envelope.types

    @property
    def type_of(self) -> Sequence[int] | None:
        """Each record's index into `types`; ``None`` where all are of the first."""
        return self._envelope.type_of

    @property
    def keys(self) -> Sequence[str | None]:
        """Each record's key."""
        return self._envelope.keys

    def until(self, last: Offset) -> Chunk:
        """Return the chunk without the records behind an offset."""
        length = last - self.first + 1 if self.offsets is None else bisect_right(self.offsets, last)
        if length >= self.length:
            return self
        length = max(length, 0)
        data = self.data[: self._starts[length] - 1] + b"]" if length else b"[]"
        offsets = None if self.offsets is None else self.offsets[:length]
        start = min(self.start, length)
        return Chunk(self.where, self.first, self._envelope, data, self._starts[:length], offsets=offsets, start=start)

    def offset(self, index: int) -> Offset:
        """Return the offset of the record at `index`."""
        return Offset(self.first + index) if self.offsets is None else self.offsets[index]

    def offsets_at(self, indices: Sequence[int]) -> Sequence[Offset]:
        """Return the offsets of the records at `indices`."""
        if self.offsets is None:
            first: int = self.first
            return cast(
                "list[Offset]", [first + index for index in indices]
            )  # a call of `Offset` for each would cost as much again
        return [self.offsets[index] for index in indices]

    def slice(self, index: int) -> bytes:
        """Return the JSON of the record at `index`."""
        end = self._starts[index + 1] if index + 1 < self.length else len(self.data)
        return self.data[self._starts[index] : end - 1]

    def logged_at_us(self, index: int) -> int:
        """Return when the log stored the record at `index`, in microseconds since 1970 UTC."""
        logged = self._envelope.logged_at_us
        return logged if isinstance(logged, int) else logged[index]

    def producer(self, index: int) -> tuple[str, int]:
        """Return who appended the record at `index`, and its number; `("", -1)` where nobody was named."""
        if self._producer_of is None:
            self._producer_of = [
                (run.producer, run.first + step if run.producer else -1)
                for run in self._envelope.runs
                for step in range(run.length)
            ]
        return self._producer_of[index]

    def record(self, index: int) -> StoredRecord:
        """Return the record at `index` with its whole envelope."""
        envelope = self._envelope
        topic, partition = self.where
        offset = self.offset(index)
        type_name, schema = envelope.types[envelope.type_of[index] if envelope.type_of else 0]
        producer, sequence = self.producer(index)
        own_id = envelope.ids[index] if envelope.ids else None
        return StoredRecord(
            topic,
            partition,
            offset,
            own_id or derived_id(producer, topic, partition, sequence if producer else offset),
            type_name,
            self.slice(index),
            envelope.keys[index],
            envelope.sources[envelope.source_of[index] if envelope.source_of else 0],
            envelope.times_us[index],
            self.logged_at_us(index),
            (envelope.headers[index] if envelope.headers else None) or _NO_HEADERS,
            schema,
            producer,
            sequence,
            envelope.tags[index] if envelope.tags else (),
            envelope.flags[index] if envelope.flags else 0,
            envelope.key_ids[index] if envelope.key_ids else None,
            envelope.tenants[index] if envelope.tenants else None,
        )

    def records(self) -> Iterator[StoredRecord]:
        """Yield the records from `start` on."""
        for index in range(self.start, self.length):
            yield self.record(index)


class Batch(NamedTuple):
    """What one read brought: chunks, each partition's in order, and how far each partition was scanned."""

    chunks: Sequence[Chunk]
    through: Mapping[TopicPartition, Offset]
    """The last offset looked at, with or without a record there: reading goes on behind it."""

    def records(self) -> Iterator[StoredRecord]:
        """Yield every record of every chunk."""
        for chunk in self.chunks:
            yield from chunk.records()


def split(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the pieces that fit a chunk each, for records of `sizes` bytes of data, in order."""
    start = total = 0
    for index, size in enumerate(sizes):
        if index > start and (total + size > MAX_CHUNK_BYTES or index - start == MAX_CHUNK_RECORDS):
            yield start, index
            start, total = index, 0
        total += size
    if start < len(sizes):
        yield start, len(sizes)
