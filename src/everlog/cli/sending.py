"""Sending lines under numbers, so that the same input sent again stores nothing twice."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from everlog.cli.lines import Line
from everlog.cli.options import check_shared
from everlog.cli.reading import Reading, Told
from everlog.client.publisher import Publisher
from everlog.clock import SystemClock
from everlog.contracts.envelope import Addressed
from everlog.contracts.topic import Topic
from everlog.errors import CommandRefused, PublishUnknown, TopicMissing
from everlog.log import Log
from everlog.position import Offset, Position, TopicPartition
from everlog.record import NewRecord
from everlog.settings import Settings, open_log, resolve

_TIMEOUT_S: Final = 30.0


class Sender:
    """One producer at work on the topics of a log, one batch after the other. Made by `opened`."""

    def __init__(self, log: Log, reading: Reading, told: Told, *, makes_topics: bool) -> None:
        self._log = log
        self._reading = reading
        self._told = told
        self._makes_topics = makes_topics
        name = told.producer if told.producer is not None else told.source
        suffix = f"/{reading.suffix}" if told.producer is not None else f"-{secrets.token_hex(8)}"
        self._publisher = Publisher(log, name + suffix, named=told.producer is not None, clock=SystemClock())
        self._stored: dict[TopicPartition, int] = {}
        self._to_skip: dict[TopicPartition, int] = {}
        self._spread = told.spread()
        self._offsets: dict[TopicPartition, Offset] = {}
        self.published: Counter[str] = Counter()
        """Events stored by this run, by topic."""
        self.skipped = 0
        """Events that an earlier run stored."""

    @classmethod
    async def opened(cls, settings: Settings, reading: Reading, told: Told) -> Sender:
        """Open the log, and ask what is stored under the producer's name; make the topic, where there is one alone.

        Raises:
            EverlogError: The log cannot be opened, or a topic is missing or not as declared.
        """
        log = await open_log(settings, clock=SystemClock())
        try:
            check_shared(log, resolve(settings.log_url))
            sender = cls(log, reading, told, makes_topics=settings.create_topics)
            await sender._learn()
            if len(reading.topics) == 1:
                await sender._prepare(reading.topics[0])
        except BaseException:
            await log.aclose()
            raise
        return sender

    async def _learn(self) -> None:
        """Ask for the numbers that a named producer has used."""
        if self._told.producer is None:
            return
        known = {spec.name for spec in await self._log.topics()}
        for topic in self._reading.topics:
            if topic.name in known:
                last = await self._log.last_sequence(self._publisher.name, topic.name)
                self._stored |= {TopicPartition(topic.name, partition): number + 1 for partition, number in last.items()}
        self._to_skip = dict(self._stored)

    async def _prepare(self, topic: Topic) -> None:
        """Make a topic, or look whether it is there, before the first event of it is sent."""
        if self._publisher.is_open(topic):
            return
        if self._makes_topics:
            await self._log.ensure_topic(topic.spec())
        elif all(spec.name != topic.name for spec in await self._log.topics()):
            raise TopicMissing(topic.name)
        await self._publisher.open(topic, None)

    def check_grown(self, lines: Mapping[TopicPartition, int], name: str) -> None:
        """Check that a file has at least the lines that were sent of it before.

        Raises:
            CommandRefused: It has fewer: it is another file, or lines are gone.
        """
        for where, stored in self._stored.items():
            if lines.get(where, 0) < stored:
                raise CommandRefused(
                    f"producer {self._told.producer!r} has stored {stored:,} events in partition {where.partition} of {where.topic!r}, and "
                    f"{name} has {lines.get(where, 0):,} for it: a file may only grow, and each file has a producer name of its own"
                )

    async def send(self, lines: Sequence[Line], name: str) -> None:
        """Store lines, all of a partition or none of them, and leave out those that were stored before.

        Raises:
            EventRefused: One breaks the contract; nothing of `lines` was sent.
            CommandRefused: The log did not answer; says what to do.
        """
        rest = [self._without_stored(whole) for whole in self._reading.addressed(lines, self._spread, name)]
        rest = [target for target in rest if target.records]
        if not rest:
            return
        for target in rest:
            await self._prepare(target.topic)
        try:
            published = await self._publisher.send(rest, timeout_s=_TIMEOUT_S)
        except PublishUnknown as error:
            again = (
                "run the command again, it goes on where it stopped"
                if self._told.producer
                else "look with `everlog tail`; --producer makes a rerun safe"
            )
            span = f"{name}:{lines[0].number}–{lines[-1].number}"
            raise CommandRefused(
                f"{span}: the log did not answer within {_TIMEOUT_S:g} s, so they are stored or not: {again}"
            ) from error
        for target in rest:
            self.published[target.topic.name] += len(target.records)
        self._offsets.update(published.position.offsets)

    def _without_stored(self, whole: Addressed) -> Addressed:
        records: list[NewRecord] = []
        for record in whole.records:
            where = TopicPartition(whole.topic.name, record.partition)
            left = self._to_skip.get(where, 0)
            if left:
                self._to_skip[where] = left - 1
                self.skipped += 1
            else:
                records.append(record)
        return Addressed(whole.topic, records, range(len(records)))

    def position(self) -> Position:
        """Return the position behind what this run stored."""
        return Position(self._log.identity, dict(self._offsets))

    async def aclose(self) -> None:
        """Close the log."""
        await self._log.aclose()
