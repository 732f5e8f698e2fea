"""What comes out of the log for somebody who watches it: raw records of chosen topics, those made meanwhile included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from everlog.cli.modules import chosen
from everlog.client.follower import Start, parsed, start_of, with_oldest
from everlog.clock import SystemClock
from everlog.codec import Batch, Chunk
from everlog.errors import RecordsGone
from everlog.key import partition_of
from everlog.log import Log, Reader, TopicSpec
from everlog.position import Offset, TopicPartition
from everlog.record import StoredRecord

_OWN: Final = "everlog."
"""Topics of the platform itself are shown where they are asked for by name."""
_LOOK_FOR_TOPICS_S: Final = 2.0
"""No log says that a topic was made, so who watches all of them looks."""


class Wanted(NamedTuple):
    """Which records, and from where."""

    topics: frozenset[str]
    """Empty: all but those of the platform."""
    types: frozenset[str]
    """Empty: all."""
    key: str | None
    start: Start
    after: str | None
    """A position token; goes before `start`."""

    def of(self, chunk: Chunk) -> Iterator[StoredRecord]:
        """Yield the records of a chunk that are wanted."""
        if self.types and not any(name in self.types for name, _ in chunk.types):
            return
        for index in range(chunk.start, chunk.length):
            if self.key is None or chunk.keys[index] == self.key:
                record = chunk.record(index)
                if not self.types or record.type in self.types:
                    yield record

    def has(self, topic: str) -> bool:
        """Tell whether a topic is to be read."""
        return topic in self.topics if self.topics else not topic.startswith(_OWN)

    def places(self, spec: TopicSpec) -> Sequence[TopicPartition]:
        """Return the partitions to read: where a key decides, only the one that it belongs to."""
        numbers = range(spec.partitions) if self.key is None or spec.key is None else [partition_of(self.key, spec.partitions)]
        return [TopicPartition(spec.name, number) for number in numbers]


async def begin(log: Log, wanted: Wanted, *, is_checked: bool) -> dict[TopicPartition, Offset]:
    """Return the partitions to read, and the offset to begin behind in each.

    Args:
        log: Where from.
        wanted: What.
        is_checked: Topics and types were checked against contracts. They may be missing in the log, and come later.

    Raises:
        CommandRefused: A topic or a type is named that the log has not.
        PositionRefused: The token is damaged, of another log, or of what the log has lost since.
    """
    specs = {spec.name: spec for spec in await log.topics()}
    found = [spec for name, spec in specs.items() if wanted.has(name)]
    if not is_checked:
        for name in wanted.topics:
            chosen(name, list(specs), what="topic", where="the log")
        for name in wanted.types:
            chosen(name, [type_name for spec in found for type_name in spec.types], what="event type", where="the log")
    places = [where for spec in found for where in wanted.places(spec)]
    after: Mapping[TopicPartition, Offset] = {}
    if wanted.after is not None:
        after = (await parsed(log, wanted.after)).offsets
    starts: dict[TopicPartition, Offset] = {}
    for spec in found:
        starts.update(await start_of(log, spec.name, wanted.start if wanted.after is None else "beginning"))
    return {where: after.get(where, starts[where]) for where in places}


async def feed(
    log: Log, wanted: Wanted, offsets: dict[TopicPartition, Offset], ended: Coroutine[Any, Any, None]
) -> AsyncGenerator[Sequence[Chunk]]:
    """Yield chunks as they are stored, until `ended` returns. Partitions of topics made meanwhile are added to `offsets`.

    Raises:
        RecordsGone: Retention deleted what was to come next, before it was read.
    """
    reader, clock = log.reader(offsets), SystemClock()
    ending, following = asyncio.ensure_future(ended), asyncio.ensure_future(reader.next())
    look_s = clock.monotonic_s() + _LOOK_FOR_TOPICS_S
    try:
        while not ending.done():
            pause_s = max(0.0, look_s - clock.monotonic_s())
            await asyncio.wait((following, ending), timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
            if clock.monotonic_s() >= look_s:
                await _add_topics(log, reader, wanted, offsets)
                look_s = clock.monotonic_s() + _LOOK_FOR_TOPICS_S
            if following.done():
                yield (await _told(log, offsets, following)).chunks
                following = asyncio.ensure_future(reader.next())
    finally:
        for task in (following, ending):
            task.cancel()
        await asyncio.gather(following, ending, return_exceptions=True)
        reader.close()


async def _told(log: Log, offsets: dict[TopicPartition, Offset], following: asyncio.Future[Batch]) -> Batch:
    try:
        return following.result()
    except RecordsGone as gone:
        raise await with_oldest(log, offsets, gone) from gone


async def _add_topics(log: Log, reader: Reader, wanted: Wanted, offsets: dict[TopicPartition, Offset]) -> None:
    added: dict[TopicPartition, Offset] = {}
    for spec in await log.topics():
        new = [where for where in wanted.places(spec) if where not in offsets] if wanted.has(spec.name) else []
        if new:
            first = (await log.first(spec.name)).offsets
            added.update({where: first[where] for where in new})
    if added:
        offsets.update(added)
        reader.assign(added)
