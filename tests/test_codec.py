"""Chunks: what is encoded comes back, and nothing that was changed is believed."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlog.codec import MAX_CHUNK_BYTES, MAX_CHUNK_RECORDS, Chunk, ProducerRun, encode_chunk, split
from everlog.errors import FileDamaged, FileNewer
from everlog.position import BEGINNING, Offset, TopicPartition
from everlog.record import NewRecord, derived_id

WHERE = TopicPartition("shop.orders", 3)
FIRST = Offset(100)
LOGGED_AT_US = 1_767_225_600_000_000

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
texts = st.text(max_size=8)
new_records = st.builds(
    NewRecord,
    type=st.sampled_from(["a/1", "a/2", "b/1"]),
    data=json_values.map(msgspec.json.encode),
    key=st.none() | texts,
    partition=st.just(WHERE.partition),
    source=st.sampled_from(["app", "other"]),
    time_us=st.integers(-(2**62), 2**62),
    id=st.none() | st.text(min_size=1, max_size=8),
    headers=st.none() | st.dictionaries(texts, texts, max_size=2),
    schema=st.sampled_from([0, 1, 2**64 - 1]),
    logged_at_us=st.none() | st.integers(0, 2**62),
    tags=st.lists(texts, max_size=2).map(tuple),
    flags=st.integers(0, 255),
    key_id=st.none() | texts,
    tenant=st.none() | texts,
)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Sequence[NewRecord], Sequence[ProducerRun]]:
    records = draw(st.lists(new_records, min_size=1, max_size=12))
    runs: list[ProducerRun] = []
    left = len(records)
    while left:
        count = draw(st.integers(1, left))
        name = draw(st.sampled_from(["", "p", "q"]))
        runs.append(ProducerRun(name, draw(st.integers(0, 2**40)) if name else -1, count))
        left -= count
    return records, runs


def one_chunk(count: int = 3) -> bytes:
    records = [NewRecord("a/1", b'{"n":%d}' % n, f"k{n}", 3, "app", n) for n in range(count)]
    return encode_chunk(records, [ProducerRun("p", 0, count)], LOGGED_AT_US)


@given(batches())
def test_every_field_of_every_record_comes_back(batch: tuple[Sequence[NewRecord], Sequence[ProducerRun]]) -> None:
    records, runs = batch
    numbers = [(run.producer, run.first + step if run.producer else -1) for run in runs for step in range(run.length)]
    found = list(Chunk.from_bytes(encode_chunk(records, runs, LOGGED_AT_US), WHERE, FIRST, after=BEGINNING).records())
    assert len(found) == len(records)
    for index, (stored, new, (producer, sequence)) in enumerate(zip(found, records, numbers, strict=True)):
        number = sequence if producer else FIRST + index
        assert (stored.topic, stored.partition, stored.offset) == (*WHERE, FIRST + index)
        assert (stored.type, stored.schema, stored.data, stored.key) == (new.type, new.schema, new.data, new.key)
        assert (stored.source, stored.time_us, dict(stored.headers)) == (new.source, new.time_us, dict(new.headers or {}))
        assert stored.id == (new.id or derived_id(producer, *WHERE, number))
        assert stored.logged_at_us == (LOGGED_AT_US if new.logged_at_us is None else new.logged_at_us)
        assert (stored.producer, stored.sequence) == (producer, sequence)
        assert (stored.tags, stored.flags, stored.key_id or None, stored.tenant or None) == (
            new.tags,
            new.flags,
            new.key_id or None,
            new.tenant or None,
        )


@given(batches())
def test_the_data_of_a_chunk_is_one_json_array_of_its_records(batch: tuple[Sequence[NewRecord], Sequence[ProducerRun]]) -> None:
    records, runs = batch
    chunk = Chunk.from_bytes(encode_chunk(records, runs, LOGGED_AT_US), WHERE, FIRST, after=BEGINNING)
    assert msgspec.json.decode(chunk.data) == [msgspec.json.decode(record.data) for record in records]
    assert [chunk.slice(index) for index in range(chunk.length)] == [record.data for record in records]


@given(st.data())
def test_a_flipped_bit_anywhere_is_refused_as_damage(data: st.DataObject) -> None:
    body = bytearray(one_chunk())
    bit = data.draw(st.integers(0, len(body) * 8 - 1))
    body[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FileDamaged):
        Chunk.from_bytes(bytes(body), WHERE, FIRST, after=BEGINNING)


def test_a_chunk_that_was_cut_or_lengthened_anywhere_is_refused_as_damage() -> None:
    body = one_chunk()
    for changed in [*(body[:length] for length in range(len(body))), body + b"\0", body + body]:
        with pytest.raises(FileDamaged, match=r"shop\.orders/3"):
            Chunk.from_bytes(changed, WHERE, FIRST, after=BEGINNING)


@given(batches(), st.integers(-2, 14), st.integers(-1, 13))
def test_a_chunk_that_is_cut_behind_an_offset_holds_the_records_up_to_it(
    batch: tuple[Sequence[NewRecord], Sequence[ProducerRun]], last: int, after: int
) -> None:
    records, runs = batch
    chunk = Chunk.from_bytes(encode_chunk(records, runs, LOGGED_AT_US), WHERE, FIRST, after=Offset(FIRST + after))
    cut = chunk.until(Offset(FIRST + last))
    assert list(cut.records()) == [record for record in chunk.records() if record.offset <= FIRST + last]
    assert msgspec.json.decode(cut.data) == msgspec.json.decode(chunk.data)[: max(0, last + 1)]
    holes = Chunk(
        WHERE, FIRST, chunk._envelope, chunk.data, chunk._starts, offsets=[Offset(FIRST + 2 * n) for n in range(chunk.length)]
    )
    assert [one.offset for one in holes.until(Offset(FIRST + last)).records()] == [
        FIRST + 2 * n for n in range(len(records)) if 2 * n <= last
    ]


@pytest.mark.parametrize("at", [4, 5, 6], ids=["format", "codec", "compression"])
def test_a_chunk_of_a_newer_everlog_is_refused_as_newer(at: int) -> None:
    body = bytearray(one_chunk())
    body[at] = 9
    struct.pack_into("<I", body, 24, zlib.crc32(body[28:], zlib.crc32(body[:24])))
    with pytest.raises(FileNewer, match="upgrade"):
        Chunk.from_bytes(bytes(body), WHERE, FIRST, after=BEGINNING)


@pytest.mark.parametrize(
    ("after", "left"),
    [(-1, [100, 101, 102]), (99, [100, 101, 102]), (100, [101, 102]), (101, [102]), (102, [])],
)
def test_a_chunk_is_read_from_behind_the_offset_given(after: int, left: list[int]) -> None:
    chunk = Chunk.from_bytes(one_chunk(), WHERE, FIRST, after=Offset(after))
    assert [record.offset for record in chunk.records()] == left
    assert len(chunk) == len(left)
    assert (chunk.length, chunk.last) == (3, 102)


@given(st.lists(st.integers(0, MAX_CHUNK_BYTES + 10) | st.integers(0, 10), max_size=60))
def test_pieces_cover_all_records_in_order_and_fit_a_chunk(sizes: list[int]) -> None:
    pieces = list(split(sizes))
    assert [at for start, stop in pieces for at in range(start, stop)] == list(range(len(sizes)))
    for start, stop in pieces:
        assert sum(sizes[start:stop]) <= MAX_CHUNK_BYTES or stop - start == 1


def test_a_piece_holds_at_most_4096_records() -> None:
    assert list(split([1] * (2 * MAX_CHUNK_RECORDS + 1))) == [(0, 4096), (4096, 8192), (8192, 8193)]
