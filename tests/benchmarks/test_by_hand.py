from __future__ import annotations

import msgspec
from benchmarks.by_hand import chunk_of, events_of, validated
from benchmarks.sample import order_events, orders, totalled

from everlog.codec import Chunk, ProducerRun, encode_chunk
from everlog.position import BEGINNING, Offset, TopicPartition
from everlog.record import NewRecord


def test_each_side_reads_the_chunks_of_the_other() -> None:
    events = order_events(10)
    datas = validated(events)
    keys = [event.customer_id for event in events]
    where = TopicPartition(orders.name, 3)
    theirs = Chunk.from_bytes(chunk_of(datas, keys, 7, 5), where, Offset(7), after=BEGINNING)
    records = [NewRecord("bench.order_placed/1", data, key, 3, "publisher", 5) for data, key in zip(datas, keys, strict=True)]
    body = encode_chunk(records, [ProducerRun("by-hand", 7, len(records))], 5)
    ours = Chunk.from_bytes(body, where, Offset(7), after=BEGINNING)
    assert body == chunk_of(datas, keys, 7, 5)
    assert list(theirs.records()) == list(ours.records())
    envelope, read = events_of(body)
    assert (read, envelope[2]) == (events, keys)


def test_the_events_are_about_200_bytes_of_json() -> None:
    orders = order_events(100)
    for data in [*validated(orders), *map(msgspec.json.encode, [totalled(order, 1_000_000) for order in orders])]:
        assert 180 <= len(data) <= 220


def test_events_are_the_same_in_every_run() -> None:
    assert order_events(3) == order_events(3)
    assert len(set(order_events(3))) == 3
