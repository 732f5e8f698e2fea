"""One who publishes, reads or deletes, in a process of its own. Started by `test_retention.py`, and ended by a signal."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from everlog.errors import RecordsGone
from everlog.log import Log, ProducerBatch, TopicSpec
from everlog.logs.sqlite import SqliteLog, retention
from everlog.position import BEGINNING, Offset, TopicPartition
from everlog.record import NewRecord
from everlog.testing.clock import ManualClock

TOPIC = "shop.orders"
WHERE = TopicPartition(TOPIC, 0)
RECORDS = 4_000


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def publisher(log: Log, name: str) -> None:
    await log.ensure_topic(SPEC)
    for first in range(0, RECORDS, 10):
        records = [NewRecord("shop.order_placed/1", b'"%s"' % (b"x" * 500), "k", 0, "shop", first + n) for n in range(10)]
        appended = await log.append(TOPIC, records, producer=ProducerBatch(name, {0: first}, named=True))
        assert appended.settled
    say(f"published {RECORDS}")


async def reader(log: SqliteLog, pace: str, stop: asyncio.Event) -> None:
    """Read every record in its place, or be told which are gone; at the end, up to the head."""
    await log.ensure_topic(SPEC)
    following = log.reader({WHERE: BEGINNING})
    after, told = BEGINNING, 0
    say("ready")
    stopping = asyncio.create_task(stop.wait())
    while not stop.is_set() or after < (await log.head(TOPIC)).offsets[WHERE]:
        waiting = asyncio.create_task(following.next(max_records=50))
        await asyncio.wait((waiting,) if stop.is_set() else (waiting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            continue
        error = waiting.exception()
        if isinstance(error, RecordsGone):
            assert error.after == after < error.first
            told += 1
            after = Offset(error.first)
            following.revoke([WHERE])
            following.assign({WHERE: after})
            continue
        for one in waiting.result().records():
            assert one.offset == after + 1, f"expected offset {after + 1}, found {one.offset}"
            after = one.offset
        while pace == "slow" and not told and (await log.first(TOPIC)).offsets[WHERE] <= after:
            await log.heard(log.strokes)  # it is so slow that it is overtaken
    say(f"told {told} read {after}")


async def retainer(log: Log, chunks: str, stop: asyncio.Event) -> None:
    retention.STEP_CHUNKS = int(chunks)  # type: ignore[misc]
    say("ready")
    while not stop.is_set():
        await log.retain()
        await asyncio.sleep(0)


SPEC = TopicSpec(TOPIC, key="id", partitions=1, keep_bytes=100_000)


async def main(path: str, wall_us: int, role: str, argument: str) -> None:
    stop = asyncio.Event()
    log = SqliteLog(Path(path), ManualClock(wall_us=wall_us))
    await log.open()
    if role == "publisher":
        await publisher(log, argument)
    else:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await (reader if role == "reader" else retainer)(log, argument, stop)
    await log.aclose()


asyncio.run(main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))
