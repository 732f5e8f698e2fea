"""One call of a handler: the record that it is about, whether it comes from the log or from what the store holds."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID

from everlog.codec import Chunk
from everlog.contracts.contract import Contract
from everlog.contracts.record import Record
from everlog.position import Position, TopicPartition
from everlog.record import StoredRecord


class Call:
    """What `tx` needs to know of the record that is handled. Builds it when it is asked for, and not for every event."""

    __slots__ = ("_chunk", "_contract", "_event", "_index", "_log", "_prefix", "_stored")

    def __init__(
        self,
        prefix: str,
        log: UUID,
        contract: Contract[Any],
        event: Any,
        *,
        chunk: Chunk | None = None,
        index: int = 0,
        stored: StoredRecord | None = None,
    ) -> None:
        """Give either `chunk` and `index`, or `stored`.

        Args:
            prefix: App and subscription, as the idempotency key starts.
            log: The identity of the log.
            contract: The event's contract.
            event: The event, decoded.
            chunk: The chunk that it is in.
            index: Where in the chunk.
            stored: The record itself.
        """
        self._prefix = prefix
        self._log = log
        self._contract = contract
        self._event = event
        self._chunk = chunk
        self._index = index
        self._stored = stored

    def stored(self) -> StoredRecord:
        """Return the raw record."""
        if self._stored is None:
            assert self._chunk is not None
            self._stored = self._chunk.record(self._index)
        return self._stored

    def record(self) -> Record[Any]:
        """Return the record that is handled."""
        stored = self.stored()
        here = partial(Position, self._log, {TopicPartition(stored.topic, stored.partition): stored.offset})
        return Record(stored, self._contract, here, self._event)

    @property
    def idempotency_key(self) -> str:
        """The same text each time this event is handled by this subscription."""
        stored = self.stored()
        return f"{self._prefix}/{stored.source}/{stored.id}"
