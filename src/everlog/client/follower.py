"""Following the log: every record of some types, from a position on, pushed as it is stored. No progress, no lease."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Literal

from everlog.codec import Chunk
from everlog.contracts.contract import Contract
from everlog.contracts.record import Record
from everlog.errors import PositionRefused, RecordsGone
from everlog.key import partition_of
from everlog.log import Log
from everlog.position import Offset, Position, TopicPartition

Start = Literal["beginning", "now"] | datetime
"""Where a reader of the log begins: at the first event, behind the last one, or at the first one logged at or after a time."""


async def start_of(log: Log, topic: str, start: Start) -> Mapping[TopicPartition, Offset]:
    """Return the offsets that a start means in one topic.

    Raises:
        TopicMissing: It does not exist.
        ValueError: A time without a zone.
    """
    if start == "beginning":
        position = await log.first(topic)
    elif start == "now":
        position = await log.head(topic)
    else:
        position = await log.position_at(topic, start)
    return position.offsets


async def follow(
    log: Log,
    contracts: Sequence[Contract[Any]],
    *,
    start: Start,
    after: Position | None,
    key: str | None,
) -> AsyncIterator[Record[Any]]:
    """Yield the records of some types, each partition's in order, for ever.

    Args:
        log: Where from; the topics exist.
        contracts: Which types.
        start: Where to begin, where `after` is not given.
        after: Begin behind this position; a partition that it does not name begins at its oldest record.
        key: Only the records of this key.

    Raises:
        RecordsGone: Retention deleted what was to come next, before it was read: behind `after`, or while it was followed. Names the
            oldest position that is kept.
    """
    by_name = {contract.name: contract for contract in contracts}
    offsets: dict[TopicPartition, Offset] = {}
    for topic in {contract.topic.name: contract.topic for contract in contracts}.values():
        here = await start_of(log, topic.name, start if after is None else "beginning")
        if after is not None:
            here = {where: after.offsets.get(where, oldest) for where, oldest in here.items()}
        if key is not None and topic.key is not None:
            mine = TopicPartition(topic.name, partition_of(key, topic.partitions))
            here = {mine: here[mine]}
        offsets.update(here)
    reader = log.reader(offsets)
    try:
        while True:
            try:
                batch = await reader.next()
            except RecordsGone as gone:
                raise await with_oldest(log, offsets, gone) from gone
            for chunk in batch.chunks:
                wanted = _wanted(chunk, by_name)
                for index in range(chunk.start, chunk.length):
                    contract = wanted if wanted is None or isinstance(wanted, Contract) else wanted[index]
                    offset = chunk.offset(index)
                    if contract is None or (key is not None and chunk.keys[index] != key):
                        continue
                    offsets[chunk.where] = offset
                    yield Record(chunk.record(index), contract, partial(Position, log.identity, dict(offsets)))
                offsets[chunk.where] = chunk.last
    finally:
        reader.close()


async def parsed(log: Log, token: str) -> Position:
    """Return the position that a token names in this log.

    Raises:
        PositionRefused: It is damaged, of another log, or of what the log has lost since: a backup was put in its place.
    """
    position = Position.parse(token, log=log.identity)
    for topic in {where.topic for where in position.offsets} & {spec.name for spec in await log.topics()}:
        for where, last in (await log.head(topic)).offsets.items():
            if position.offsets.get(where, last) > last:
                raise PositionRefused(
                    f"the position is offset {position.offsets[where]} of {topic}/{where.partition}, and the log ends at {last}: it was put back "
                    f"from a backup since; start from a time instead"
                )
    return position


async def with_oldest(log: Log, offsets: Mapping[TopicPartition, Offset], gone: RecordsGone) -> RecordsGone:
    """Return what a reader was told, with the position to go on from: where it stands, or else the oldest that is kept."""
    first: dict[TopicPartition, Offset] = {}
    for topic in {where.topic for where in offsets}:
        first.update((await log.first(topic)).offsets)
    oldest = Position(log.identity, {where: max(offset, first[where]) for where, offset in offsets.items()})
    return RecordsGone(gone.topic, gone.partition, after=gone.after, first=gone.first, oldest=oldest.token())


def _wanted(chunk: Chunk, by_name: Mapping[str, Contract[Any]]) -> Contract[Any] | Sequence[Contract[Any] | None] | None:
    """Return the contract of all records of a chunk, or of each; ``None`` where none is asked for."""
    contracts = [by_name.get(name) for name, _ in chunk.types]
    if chunk.type_of is None or not any(contracts):
        return contracts[0]
    return [contracts[number] for number in chunk.type_of]
