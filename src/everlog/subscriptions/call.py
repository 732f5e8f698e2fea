"""One call of a handler: the record that it is about, whether it comes from the log or from what the store holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn
from uuid import UUID

from everlog.codec import Chunk
from everlog.contracts.contract import Contract
from everlog.contracts.record import Record
from everlog.errors import TxRefused
from everlog.position import Position, TopicPartition
from everlog.record import StoredRecord
from everlog.store import Attempt, Muted


class Call:
    """What `tx` needs to know of the record that is handled. Builds it when it is asked for, and not for every event."""

    __slots__ = ("_chunk", "_contract", "_event", "_held", "_index", "_log", "_prefix", "_stored", "muted")

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
        held: tuple[str, int, int] | None = None,
    ) -> None:
        """Give either `chunk` and `index`, or `stored` and `held`.

        Args:
            prefix: App and subscription, as the idempotency key starts.
            log: The identity of the log.
            contract: The event's contract.
            event: The event, decoded.
            chunk: The chunk that it is in.
            index: Where in the chunk.
            stored: The record itself.
            held: The key, id and attempts of a held record.
        """
        self._prefix = prefix
        self._log = log
        self._contract = contract
        self._event = event
        self._chunk = chunk
        self._index = index
        self._stored = stored
        self._held = held
        self.muted: Muted | None = None
        """What a replay does not publish again of its partition."""

    @property
    def is_replayed(self) -> bool:
        """What its handler publishes was published before."""
        if self.muted is None:
            return False
        offset = self._chunk.offset(self._index) if self._chunk is not None else self.stored().offset
        return self.muted.has(offset, self._contract.name)

    def stored(self) -> StoredRecord:
        """Return the raw record."""
        if self._stored is None:
            assert self._chunk is not None
            self._stored = self._chunk.record(self._index)
        return self._stored

    def has(self, record: StoredRecord) -> bool:
        """Tell whether a record is the one that is handled."""
        return record is self.stored()

    @property
    def attempt(self) -> Attempt:
        """What is handled, as the store notes it where that may kill the process."""
        if self._held is not None:
            return Attempt(held=self._held)
        if self._chunk is not None:
            return Attempt([(self._chunk.where, self._chunk.offset(self._index))])
        return Attempt()

    def records(self) -> Sequence[Record[Any]]:
        """Return the record that is handled, as the only one."""
        return (self.record(),)

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


class BatchCall:
    """The same for a handler that takes several events at once.

    Args:
        make: Returns one per record, at least one, in the order of the events. Asked once, when it is first needed: most handlers of
            batches never do.
    """

    __slots__ = ("_handled", "_made", "_make", "_records")

    def __init__(self, make: Callable[[], Sequence[Call]]) -> None:
        self._make = make
        self._made: Sequence[Call] | None = None
        self._records: Sequence[Record[Any]] | None = None
        self._handled: set[tuple[str, str]] | None = None

    @property
    def _calls(self) -> Sequence[Call]:
        if self._made is None:
            self._made = self._make()
        return self._made

    @property
    def is_replayed(self) -> bool:
        """What its handler publishes was published before: so it is of all of its records, or of none."""
        return self._calls[0].is_replayed

    def stored(self) -> StoredRecord:
        """Return the first raw record: what is published without a cause follows from it."""
        return self._calls[0].stored()

    def has(self, record: StoredRecord) -> bool:
        """Tell whether a record is one of those that are handled."""
        if self._handled is None:
            self._handled = {(call.stored().source, call.stored().id) for call in self._calls}
        return (record.source, record.id) in self._handled

    @property
    def attempt(self) -> Attempt:
        """What is handled, as the store notes it where that may kill the process."""
        if len(self._calls) == 1:
            return self._calls[0].attempt
        return Attempt([where for call in self._calls for where in call.attempt.records])

    def records(self) -> Sequence[Record[Any]]:
        """Return the records that are handled."""
        if self._records is None:
            self._records = [call.record() for call in self._calls]
        return self._records

    def record(self) -> NoReturn:
        """Refuse.

        Raises:
            TxRefused: Always.
        """
        raise TxRefused("this handler takes a batch: use tx.records, which has one record per event")

    @property
    def idempotency_key(self) -> NoReturn:
        """Refuse.

        Raises:
            TxRefused: Always.
        """
        raise TxRefused(
            "a batch has no key of its own, since it may be made up differently the next time: use the id of each of tx.records"
        )
