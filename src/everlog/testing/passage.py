"""The log of a world, as one app has it: the same log for all, with faults on the way to it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from everlog.clock import Clock
from everlog.codec import Batch
from everlog.errors import LogReadOnly
from everlog.log import Appended, Backlog, Expect, Features, Log, ProducerBatch, Reader, TopicSpec
from everlog.position import Offset, Position, TopicPartition
from everlog.record import NewRecord
from everlog.store import relay_of
from everlog.testing.faults import Outage
from everlog.testing.life import Life


class Passage:
    """A `Log`, by way of which an app can be killed or held, and which can be down.

    Args:
        log: The log.
        outage: When it is down.
        clock: The time that an outage takes.
        life: Who uses it; ``None`` for the test itself.
    """

    def __init__(self, log: Log, outage: Outage, clock: Clock, life: Life | None = None) -> None:
        self._log = log
        self._outage = outage
        self._clock = clock
        self._life = life

    @property
    def identity(self) -> UUID:
        return self._log.identity

    @property
    def features(self) -> Features:
        return self._log.features

    async def ensure_topic(self, topic: TopicSpec) -> None:
        await self._log.ensure_topic(topic)

    async def set_retention(self, topic: str, *, keep_s: float | None, keep_bytes: int | None) -> None:
        await self._log.set_retention(topic, keep_s=keep_s, keep_bytes=keep_bytes)

    async def topics(self) -> Sequence[TopicSpec]:
        return await self._log.topics()

    def append(
        self,
        topic: str,
        records: Sequence[NewRecord],
        *,
        producer: ProducerBatch | None = None,
        expect: Expect | None = None,
    ) -> Coroutine[Any, Any, Appended]:
        if self._outage.left_s:
            return self._refused()
        if self._life is None:
            return self._log.append(topic, records, producer=producer, expect=expect)
        return self._appended(self._life, topic, records, producer, expect)

    async def _refused(self) -> Appended:
        raise LogReadOnly(
            f"the log takes no events for {self._outage.left_s:g} s more, as World.log_outage says: nothing was stored"
        )

    async def _appended(
        self, life: Life, topic: str, records: Sequence[NewRecord], producer: ProducerBatch | None, expect: Expect | None
    ) -> Appended:
        is_relays = producer is not None and relay_of(producer.name) is not None
        if is_relays:
            await life.reach("before_append")
        await life.go_on()
        with life.motion.working():
            appended = await self._log.append(topic, records, producer=producer, expect=expect)
        if is_relays:
            await life.reach("after_append")
        return appended

    async def last_sequence(self, producer: str, topic: str) -> Mapping[int, int]:
        return await self._log.last_sequence(producer, topic)

    def reader(self, after: Mapping[TopicPartition, Offset]) -> Reader:
        reader = self._log.reader(after)
        return reader if self._life is None else PassageReader(reader, self._outage, self._clock, self._life)

    async def first(self, topic: str) -> Position:
        return await self._log.first(topic)

    async def head(self, topic: str) -> Position:
        return await self._log.head(topic)

    async def position_at(self, topic: str, time: datetime) -> Position:
        return await self._log.position_at(topic, time)

    async def backlog(self, topic: str, after: Mapping[int, Offset]) -> Backlog:
        return await self._log.backlog(topic, after)

    async def gone_through(self, topic: str) -> Mapping[int, int]:
        return await self._log.gone_through(topic)

    async def trim(self, topic: str, before: Position) -> None:
        await self._log.trim(topic, before)

    async def retain(self) -> int:
        return await self._log.retain()

    async def read_stream(self, topic: str, key: str, *, after: Offset | None) -> Batch:
        return await self._log.read_stream(topic, key, after=after)

    async def verify(self) -> Sequence[str]:
        return await self._log.verify()

    async def backup(self, target: Path, *, progress: Callable[[int, int], None] | None = None, check: bool = True) -> None:
        await self._log.backup(target, progress=progress, check=check)

    async def aclose(self) -> None:
        """Leave the log open: it is the world's."""


class PassageReader:
    """A `Reader` that waits while the log is down."""

    def __init__(self, reader: Reader, outage: Outage, clock: Clock, life: Life) -> None:
        self._reader = reader
        self._outage = outage
        self._clock = clock
        self._life = life

    async def next(self, *, max_records: int = 4_096, max_bytes: int = 1 << 20) -> Batch:
        while self._outage.left_s:
            await self._clock.sleep(self._outage.left_s)
        batch = await self._reader.next(max_records=max_records, max_bytes=max_bytes)
        self._life.motion.step()
        return batch

    def assign(self, after: Mapping[TopicPartition, Offset]) -> None:
        self._reader.assign(after)

    def revoke(self, partitions: Sequence[TopicPartition]) -> None:
        self._reader.revoke(partitions)

    def close(self) -> None:
        self._reader.close()
