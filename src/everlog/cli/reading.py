"""What the lines of an input are: the data of events of one type, or CloudEvents with an envelope of their own."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from everlog.cli.lines import Line, event_of
from everlog.cli.modules import chosen
from everlog.clock import SystemClock
from everlog.contracts.cloudevents import incoming
from everlog.contracts.contract import Contract
from everlog.contracts.envelope import Addressed, Origin, address
from everlog.contracts.topic import Topic
from everlog.errors import CommandRefused, EventRefused
from everlog.record import NewRecord

Spread = Callable[[Topic], int]
"""Gives the next event of a topic without key its partition."""


class Told(NamedTuple):
    """What the command line says of all events."""

    source: str
    headers: Mapping[str, str]
    key: str | None
    producer: str | None

    def spread(self) -> Spread:
        """Return what gives events of a topic without key their partitions, in turn.

        Under a producer's name they begin at 0 each time, so that a line's partition is the same in each run of the same file.
        """
        numbers = itertools.count(0 if self.producer is not None else secrets.randbelow(4_096))
        return lambda topic: next(numbers) % topic.partitions


class Reading(Protocol):
    """How lines become records."""

    @property
    def topics(self) -> Sequence[Topic]:
        """The topics that its records may be of."""
        ...

    @property
    def suffix(self) -> str:
        """What is behind a producer's name, so that two inputs of two kinds under one name do not take each other's numbers."""
        ...

    def addressed(self, lines: Sequence[Line], spread: Spread, name: str) -> Sequence[Addressed]:
        """Return lines as records, by topic.

        Args:
            lines: At most a batch.
            spread: Gives events without key their partitions, in the order of the lines.
            name: Of the input, for errors.

        Raises:
            EventRefused: One of them breaks its contract; names input, line and field. `spread` has moved on by an unknown number.
        """
        ...


class DataLines:
    """Each line is the data of an event of one type; the rest of its envelope is told."""

    def __init__(self, contract: Contract[Any], told: Told) -> None:
        self._contract = contract
        self._told = told
        self.topics: Sequence[Topic] = [contract.topic]
        self.suffix = contract.name

    def addressed(self, lines: Sequence[Line], spread: Spread, name: str) -> Sequence[Addressed]:
        events = [event_of(line, self._contract, name) for line in lines]
        told = self._told
        origin = Origin(told.source, SystemClock().wall_us(), told.headers or None, spread)
        try:
            return address(events, origin, key=told.key)
        except EventRefused:
            for line, event in zip(lines, events, strict=True):
                try:
                    address([event], origin, key=told.key)
                except EventRefused as error:
                    raise EventRefused(f"{name}:{line.number}: {error}") from error
            raise


class CloudEventLines:
    """Each line is a CloudEvent, of any type that a module declares."""

    def __init__(self, contracts: Mapping[str, Contract[Any]], module: str) -> None:
        self._contracts = contracts
        self._module = module
        self.topics: Sequence[Topic] = list({contract.topic.name: contract.topic for contract in contracts.values()}.values())
        self.suffix = "cloudevents"

    def addressed(self, lines: Sequence[Line], spread: Spread, name: str) -> Sequence[Addressed]:
        now_us = SystemClock().wall_us()
        by_topic: dict[Topic, tuple[list[NewRecord], list[int]]] = {}
        for place, line in enumerate(lines):
            try:
                topic, record = self._record(line, spread, now_us)
            except EventRefused as error:
                raise EventRefused(f"{name}:{line.number}: {error}") from error
            records, places = by_topic.setdefault(topic, ([], []))
            records.append(record)
            places.append(place)
        return [Addressed(topic, records, places) for topic, (records, places) in by_topic.items()]

    def _record(self, line: Line, spread: Spread, now_us: int) -> tuple[Topic, NewRecord]:
        found = incoming(line.data)
        try:
            contract = self._contracts[chosen(found.type, list(self._contracts), what="event type", where=self._module)]
        except CommandRefused as error:
            raise EventRefused(f"type: {error}") from error
        event = event_of(Line(line.number, found.data), contract, "data")
        origin = Origin(found.source, now_us if found.time_us is None else found.time_us, found.headers or None, spread)
        is_keyed = contract.topic.key is not None
        (addressed,) = address([event], origin, key=None if is_keyed else found.subject, ids=[found.id])
        record = addressed.records[0]
        if found.subject is not None and record.key != found.subject:
            raise EventRefused(
                f"subject: expected the key, {record.key!r}, which is the field {contract.topic.key!r} of its data, found "
                f"{found.subject!r}: leave it out, or mend one of them"
            )
        return addressed.topic, record
