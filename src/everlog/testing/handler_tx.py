"""What one handler is given in a test of it alone: a `tx` that needs neither log nor store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final, TypeVar, cast, overload
from uuid import UUID

import apsw

from everlog.amount import total
from everlog.clock import to_us
from everlog.contracts.contract import contract_of
from everlog.contracts.envelope import check_headers
from everlog.contracts.event import AnyEvent
from everlog.contracts.record import Record
from everlog.drivers.sqlite.rows import rows_of
from everlog.errors import SqlFailed, SqlRefused, TxRefused
from everlog.key import canonical_text, partition_of
from everlog.position import Offset, Position, TopicPartition
from everlog.record import StoredRecord
from everlog.store import Delete, Put, StateKey, Store, Versioned
from everlog.stores.sqlite.section import why_refused
from everlog.subscriptions.overlay import Overlay, matches
from everlog.subscriptions.sections import Exclusive
from everlog.subscriptions.state import Key, Readable, State, V_co, key_of, key_text
from everlog.subscriptions.tx import Tx, TxContext

E = TypeVar("E", bound=AnyEvent)
R = TypeVar("R")
D = TypeVar("D")

_TIME_US: Final = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z, as in a world
_LOG: Final = UUID(int=0)

Given = Mapping[State[Any], Mapping[Any, Any]]
"""Rows of state: `{stock: {("north", "apple"): 3}}`."""


@overload
def tx(
    *, record: Record[Any] | Sequence[Record[Any]] | None = ..., state: Given | None = ..., replaying: bool = ...
) -> HandlerTx[None]: ...
@overload
def tx(
    resources: R, *, record: Record[Any] | Sequence[Record[Any]] | None = ..., state: Given | None = ..., replaying: bool = ...
) -> HandlerTx[R]: ...
def tx(
    resources: Any = None,
    *,
    record: Record[Any] | Sequence[Record[Any]] | None = None,
    state: Given | None = None,
    replaying: bool = False,
) -> HandlerTx[Any]:
    """Return a `tx` to call one handler with: `await reserve(order, testing.tx())`.

    It reads what is given and what the handler wrote. What the handler did can be read from it afterwards.

    Args:
        resources: What the handler gets as `tx.resources`.
        record: The record that is handled, as `testing.record` makes one; several for a batch. Only for handlers that look at it.
        state: Rows that are there before.
        replaying: What `tx.replaying` says.

    Raises:
        TxRefused: A row that is given is not of its state's type.
    """
    records = [record] if isinstance(record, Record) else list(record or ())
    rows: dict[StateKey, bytes] = {}
    for one, given in (state or {}).items():
        for key, value in given.items():
            rows[one.name, key_text(key)] = one.encode(value)
    return HandlerTx(resources, records, rows, replaying=replaying)


def record(
    event: E,
    *,
    key: object = None,
    source: str = "test",
    id: str = "1",  # noqa: A002 as CloudEvents calls it
    headers: Mapping[str, str] | None = None,
    time: datetime | None = None,
    offset: int = 0,
) -> Record[E]:
    """Return an event as the log would hold it, for `testing.tx(record=…)`.

    Args:
        event: The event.
        key: Its key, on a topic without key field.
        source: Who published it.
        id: Its id, unique within the source.
        headers: CloudEvents extensions.
        time: When it happened; ``None``: 2026-01-01 UTC.
        offset: Its place in its partition.

    Raises:
        EventRefused: It breaks its contract.
    """
    contract = contract_of(type(event))
    data = contract.encode_one(event)
    (text,) = contract.keys([event])
    if text is None and key is not None:
        text = canonical_text(key)
    topic = contract.topic
    partition = 0 if text is None else partition_of(text, topic.partitions)
    time_us = _TIME_US if time is None else to_us(time)
    stored = StoredRecord(
        topic.name, partition, Offset(offset), id, contract.name, data, text, source, time_us, time_us, headers or {},
        contract.fingerprint, "", -1,
    )  # fmt: skip
    here = partial(Position, _LOG, {TopicPartition(topic.name, partition): Offset(offset)})
    return Record(stored, contract, here, event)


class HandlerTx(Tx[R]):
    """A `Tx` for one handler, made by `testing.tx`. It stays open, and says what the handler did."""

    __slots__ = ("_database", "_refused", "_start", "_writer")

    def __init__(self, resources: R, records: Sequence[Record[Any]], rows: Mapping[StateKey, bytes], *, replaying: bool) -> None:
        super().__init__(_Call(records, is_replayed=replaying), TxContext(_Rows(rows), "", resources, _no_turn))
        self._start = rows
        self._writer: str | None = None
        self._database: apsw.Connection | None = None
        self._refused: str | None = None

    @property
    def published(self) -> list[Any]:
        """What the handler has published with `tx.publish`, in its order. What it returned is not among it."""
        return [event for out in self.outgoing for event in out.events]

    @overload
    def read(self, state: Readable[V_co], key: Key) -> V_co | None: ...
    @overload
    def read(self, state: Readable[V_co], key: Key, default: D) -> V_co | D: ...
    def read(self, state: Readable[Any], key: Key, default: object = None) -> object:
        """Return a row as the handler left it; `default` where there is none. Needs no event loop."""
        return self.rows(state).get(key_of(key_text(key)), default)

    def rows(self, state: Readable[V_co]) -> dict[tuple[str | int, ...], V_co]:
        """Return all rows of a state as the handler left them."""
        values = {key: value for (name, key), value in self._start.items() if name == state.name}
        for (name, key), write in self.writes.items():
            if name != state.name:
                continue
            if isinstance(write, Put):
                values[key] = write.value
            elif isinstance(write, Delete):
                values.pop(key, None)
            else:
                summed = total(values.get(key), write.amount)
                if summed is None:
                    raise TxRefused(f"state {state.name!r}: {key} holds no number that {write.amount!r} could be added to")
                values[key] = summed
        return {key_of(key): state.decode(value) for key, value in sorted(values.items())}

    def publish(self, *events: AnyEvent, headers: Mapping[str, str] | None = None, cause: Record[Any] | None = None) -> None:
        """Publish events, as `Tx.publish` does.

        Raises:
            EventRefused: One breaks its contract. In earnest that is found when the handler ends.
        """
        check_headers(headers)
        for event in events:
            contract = contract_of(type(event))
            contract.encode_one(event)
            contract.keys([event])
        super().publish(*events, headers=headers, cause=cause)

    async def sql(self, query: str, *params: object) -> list[tuple[Any, ...]]:
        """Run a statement on tables in a database of this `tx` alone, in memory. See `Tx.sql`; here nobody looks at the time."""
        if self._database is None:
            self._database = apsw.Connection(":memory:")
        self._refused = None
        database = self._database
        database.execute("SAVEPOINT call")
        database.authorizer = self._authorize
        try:
            rows = rows_of(database, query, params)
        except (apsw.Error, TypeError, ValueError, OverflowError) as error:
            database.authorizer = None
            if database.in_transaction:
                database.execute("ROLLBACK TO call")
            if self._refused is not None:
                raise SqlRefused(f"tx.sql: {self._refused} (in {query!r})") from error
            raise SqlFailed(f"tx.sql: {error} (in {query!r})") from error
        finally:
            database.authorizer = None
            if database.in_transaction:
                database.execute("RELEASE call")
        return rows

    def _authorize(self, operation: int, first: str | None, second: str | None, database: str | None, source: str | None) -> int:  # noqa: ARG002 as SQLite calls it
        refused = why_refused(operation, first, second, database)
        if refused is None:
            return apsw.SQLITE_OK
        self._refused = refused
        return apsw.SQLITE_DENY

    def _own(self, state: State[Any], key: Key) -> StateKey:
        """Take the first state that is written for one of the handler's own: a handler writes the state of one subscription."""
        self._writer = self._writer or state.subscription
        if state.subscription != self._writer:
            raise TxRefused(
                f"state {state.name!r} belongs to subscription {state.subscription!r}, and {self._writer!r} may only read it: "
                f"publish an event that its owner handles"
            )
        return state.name, key_text(key)


class _Call:
    """What the handler is called for: what the test says."""

    def __init__(self, records: Sequence[Record[Any]], *, is_replayed: bool) -> None:
        self._records = records
        self.is_replayed = is_replayed

    def records(self) -> Sequence[Record[Any]]:
        if not self._records:
            raise TxRefused("the handler looks at its record: give it one, testing.tx(record=testing.record(event))")
        return self._records

    def record(self) -> Record[Any]:
        first, *others = self.records()
        if others:
            raise TxRefused("this handler takes a batch: use tx.records, which has one record per event")
        return first

    @property
    def idempotency_key(self) -> str:
        if not self._records:
            return "test/test/1"
        return f"test/{self.record().source}/{self.record().id}"


class _Rows(Overlay):
    """Rows that are there before the handler is called."""

    def __init__(self, rows: Mapping[StateKey, bytes]) -> None:
        super().__init__(cast("Store", None))  # nothing here asks it
        self._rows = rows

    def known(self, place: StateKey) -> Versioned:
        value = self._rows.get(place)
        return Versioned(value, 0 if value is None else 1)

    async def scan(self, state: str, prefix: str) -> list[tuple[str, Versioned]]:
        return sorted(
            (key, Versioned(value, 1)) for (name, key), value in self._rows.items() if name == state and matches(key, prefix)
        )


def _no_turn() -> Exclusive:
    raise AssertionError("a HandlerTx runs its statements itself")
