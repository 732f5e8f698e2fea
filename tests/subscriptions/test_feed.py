"""The feed reads ahead of the handlers, and no further than its bounds, however much is waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from tests.subscriptions.world import Left, left

from everlog import App
from everlog.codec import Batch, Chunk, ProducerRun, encode_chunk
from everlog.position import BEGINNING, Offset, TopicPartition
from everlog.record import NewRecord
from everlog.store import Lease, Progress, Slot, SlotState
from everlog.subscriptions.feed import Feed
from everlog.subscriptions.progress import SlotWork

WHERE = TopicPartition(left.name, 0)
CHUNK_RECORDS = 50
CHUNK_BYTES = CHUNK_RECORDS * 4_000


class Endless:
    """A reader with always one more chunk of 200 kB."""

    def __init__(self) -> None:
        self.reads = 0

    async def next(self, *, max_records: int = 4_096, max_bytes: int = 1 << 20) -> Batch:
        await asyncio.sleep(0)
        first = Offset(self.reads * CHUNK_RECORDS)
        self.reads += 1
        data = b'{"key":"k","n":1,"by":"' + b"x" * 3_900 + b'"}'
        records = [NewRecord("test.left/1", data, "k", 0, "test", 0)] * CHUNK_RECORDS
        body = encode_chunk(records, [ProducerRun("", -1, CHUNK_RECORDS)], 0)
        chunk = Chunk.from_bytes(body, WHERE, first, after=BEGINNING)
        return Batch([chunk], {WHERE: chunk.last})

    def assign(self, after: Mapping[TopicPartition, Offset]) -> None: ...

    def revoke(self, partitions: Sequence[TopicPartition]) -> None: ...

    def close(self) -> None: ...


async def _turns(count: int = 200) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _never_lost(_work: SlotWork, _where: TopicPartition, _after: Offset, _first: Offset) -> bool:
    raise AssertionError("nothing is deleted here")


def _feed(reader: Endless, *, most: int) -> Feed:
    app = App("app")

    @app.on(Left)
    async def handle(event: Left) -> None: ...

    (declaration,) = app.declaration().subscriptions
    feed = Feed(
        reader,
        declaration.branches,
        lambda: None,
        read_ahead_bytes=most,
        lost=_never_lost,
        changed=lambda _: None,
    )
    feed.open(SlotWork(Lease(Slot("app", 0), 1, 1), SlotState([Progress(WHERE, BEGINNING)], [])))
    return feed


async def test_what_nobody_takes_is_read_ahead_by_two_mebibytes() -> None:
    reader = Endless()
    feed = _feed(reader, most=1 << 30)
    reading = asyncio.create_task(feed.run())
    await _turns()
    assert reader.reads * CHUNK_BYTES < (2 << 20) + 2 * CHUNK_BYTES
    before = reader.reads
    run = feed.next()
    assert run is not None
    feed.end(run)
    await _turns()
    assert reader.reads == before + 1, "one taken, one more read"
    reading.cancel()


@pytest.mark.parametrize("most", [CHUNK_BYTES * 3, CHUNK_BYTES * 8])
async def test_what_is_taken_and_not_finished_counts_too(most: int) -> None:
    reader = Endless()
    feed = _feed(reader, most=most)
    reading = asyncio.create_task(feed.run())
    for _ in range(40):
        await _turns(20)
        run = feed.next()
        if run is None:
            continue
        for index, *_ in run.items:
            run.partition.take(run.chunk.offset(index), run)  # handlers that do not end
        feed.end(run)
    assert reader.reads * CHUNK_BYTES <= most + 2 * CHUNK_BYTES
    reading.cancel()
