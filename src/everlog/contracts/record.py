"""A record as users see it: an event with its envelope."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Generic

from everlog.clock import to_datetime
from everlog.contracts.contract import Contract
from everlog.contracts.event import E_co
from everlog.position import Offset, Position
from everlog.record import StoredRecord


class Record(Generic[E_co]):
    """An event as the log holds it. The event is decoded, and checked against its contract, when it is first asked for."""

    __slots__ = ("_contract", "_event", "_position", "stored")

    def __init__(
        self,
        stored: StoredRecord,
        contract: Contract[E_co],
        position: Callable[[], Position],
        event: E_co | None = None,
    ) -> None:
        self.stored = stored
        """The raw record."""
        self._contract = contract
        self._position = position
        self._event = event

    def __repr__(self) -> str:
        stored = self.stored
        return f"Record({stored.type!r}, key={stored.key!r}, {stored.topic}/{stored.partition}@{stored.offset})"

    @property
    def event(self) -> E_co:
        """The event.

        Raises:
            EventRefused: The stored bytes break the contract.
        """
        if self._event is None:
            self._event = self._contract.decode(self.stored.data)
        return self._event

    @property
    def id(self) -> str:
        """Unique within the source."""
        return self.stored.id

    @property
    def source(self) -> str:
        """Who published it."""
        return self.stored.source

    @property
    def type(self) -> str:
        """The type on the wire, with its version."""
        return self.stored.type

    @property
    def topic(self) -> str:
        """The topic's name."""
        return self.stored.topic

    @property
    def partition(self) -> int:
        """The partition of the topic."""
        return self.stored.partition

    @property
    def offset(self) -> Offset:
        """The place in the partition."""
        return self.stored.offset

    @property
    def position(self) -> Position:
        """Where to read on: behind everything that was yielded so far, this record included."""
        return self._position()

    @property
    def key(self) -> str | None:
        """The key's canonical text."""
        return self.stored.key

    @property
    def time(self) -> datetime:
        """When it happened, by the publisher's clock."""
        return to_datetime(self.stored.time_us)

    @property
    def logged_at(self) -> datetime:
        """When the log stored it."""
        return to_datetime(self.stored.logged_at_us)

    @property
    def headers(self) -> Mapping[str, str]:
        """CloudEvents extensions."""
        return self.stored.headers
