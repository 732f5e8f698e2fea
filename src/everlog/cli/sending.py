"""Sending lines under numbers, so that the same file sent again stores nothing twice."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from everlog.cli.lines import Line, event_of
from everlog.cli.options import check_shared
from everlog.client.publisher import Publisher
from everlog.clock import SystemClock
from everlog.contracts.contract import Contract
from everlog.contracts.envelope import Addressed, Origin, address
from everlog.contracts.topic import Topic
from everlog.errors import CommandRefused, EventRefused, PublishUnknown, TopicMissing
from everlog.log import Log
from everlog.position import Offset, Position, TopicPartition
from everlog.record import NewRecord
from everlog.settings import Settings, open_log, resolve

_TIMEOUT_S: Final = 30.0


class Told(NamedTuple):
    """What the command line says of all events."""

    source: str
    headers: Mapping[str, str]
    key: str | None
    producer: str | None

    def spread(self) -> Callable[[Topic], int]:
        """Return what gives events of a topic without key their partitions, in turn.

        Under a producer's name they begin at 0 each time, so that a line's partition is the same in each run of the same file.
        """
        numbers = itertools.count(0 if self.producer is not None else secrets.randbelow(4_096))
        return lambda topic: next(numbers) % topic.partitions


def addressed(lines: Sequence[Line], contract: Contract[Any], told: Told, spread: Callable[[Topic], int], name: str) -> Addressed:
    """Return lines as records.

    Raises:
        EventRefused: One of them breaks the contract; names file, line and field. `spread` has moved on by an unknown number.
    """
    events = [event_of(line, contract, name) for line in lines]
    origin = Origin(told.source, SystemClock().wall_us(), told.headers or None, spread)
    try:
        return address(events, origin, key=told.key)[0]
    except EventRefused:
        for line, event in zip(lines, events, strict=True):
            try:
                address([event], origin, key=told.key)
            except EventRefused as error:
                raise EventRefused(f"{name}:{line.number}: {error}") from error
        raise


class Sender:
    """One producer at work on a topic of a log, one batch after the other. Made by `opened`."""

    def __init__(self, log: Log, contract: Contract[Any], told: Told, publisher: Publisher, stored: Mapping[int, int]) -> None:
        self._log = log
        self._contract = contract
        self._told = told
        self._publisher = publisher
        self._stored = stored
        self._to_skip = dict(stored)
        self._spread = told.spread()
        self._offsets: dict[TopicPartition, Offset] = {}
        self.published = 0
        """Events stored by this run."""
        self.skipped = 0
        """Events that an earlier run stored."""

    @classmethod
    async def opened(cls, settings: Settings, contract: Contract[Any], told: Told) -> Sender:
        """Open the log, make the topic, and ask what is stored under the producer's name.

        Raises:
            EverlogError: The log cannot be opened, or the topic is missing or not as declared.
        """
        log = await open_log(settings, clock=SystemClock())
        try:
            check_shared(log, resolve(settings.log_url))
            topic = contract.topic
            if settings.create_topics:
                await log.ensure_topic(topic.spec())
            elif all(spec.name != topic.name for spec in await log.topics()):
                raise TopicMissing(topic.name)
            # The type is a part of the name: two files of two types under one name must not take each other's numbers.
            name = f"{told.producer}/{contract.name}" if told.producer is not None else f"{told.source}-{secrets.token_hex(8)}"
            publisher = Publisher(log, name, named=told.producer is not None, clock=SystemClock())
            last = await log.last_sequence(name, topic.name) if told.producer is not None else dict[int, int]()
            await publisher.open(topic, None)
        except BaseException:
            await log.aclose()
            raise
        return cls(log, contract, told, publisher, {partition: number + 1 for partition, number in last.items()})

    @property
    def topic(self) -> str:
        """The topic's name."""
        return self._contract.topic.name

    def check_grown(self, lines: Mapping[int, int], name: str) -> None:
        """Check that a file has at least the lines that were sent of it before.

        Raises:
            CommandRefused: It has fewer: it is another file, or lines are gone.
        """
        for partition, stored in self._stored.items():
            if lines.get(partition, 0) < stored:
                raise CommandRefused(
                    f"producer {self._told.producer!r} has stored {stored:,} events in partition {partition} of {self.topic!r}, and {name} has "
                    f"{lines.get(partition, 0):,} for it: a file may only grow, and each file has a producer name of its own"
                )

    async def send(self, lines: Sequence[Line], name: str) -> None:
        """Store lines, all of a partition or none of them, and leave out those that were stored before.

        Raises:
            EventRefused: One breaks the contract; nothing of `lines` was sent.
            CommandRefused: The log did not answer; says what to do.
        """
        whole = addressed(lines, self._contract, self._told, self._spread, name)
        records: list[NewRecord] = []
        for record in whole.records:
            left = self._to_skip.get(record.partition, 0)
            if left:
                self._to_skip[record.partition] = left - 1
                self.skipped += 1
            else:
                records.append(record)
        if not records:
            return
        try:
            published = await self._publisher.send([Addressed(whole.topic, records, range(len(records)))], timeout_s=_TIMEOUT_S)
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
        self.published += len(records)
        self._offsets.update(published.position.offsets)

    def position(self) -> Position:
        """Return the position behind what this run stored."""
        return Position(self._log.identity, dict(self._offsets))

    async def aclose(self) -> None:
        """Close the log."""
        await self._log.aclose()
