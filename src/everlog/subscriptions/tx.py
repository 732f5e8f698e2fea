"""What a handler is given beside its event: state, publishing, and who it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Generic, NoReturn, Protocol, cast, overload

import msgspec
from typing_extensions import TypeVar

from everlog.amount import added, total
from everlog.contracts.event import AnyEvent
from everlog.contracts.record import Record
from everlog.errors import TxClosed, TxRefused
from everlog.store import Add, Delete, Put, ScanRead, StateKey, Versioned, Write
from everlog.subscriptions.overlay import Overlay, matches
from everlog.subscriptions.sections import Exclusive
from everlog.subscriptions.state import Key, KeyPart, Readable, State, V, V_co, key_of, key_text

R = TypeVar("R", default=None)
D = TypeVar("D")


class Call(Protocol):
    """What one call of a handler is about: known to whoever runs it."""

    def record(self) -> Record[Any]:
        """Return the record that is handled."""
        ...

    def records(self) -> Sequence[Record[Any]]:
        """Return all records that are handled by this call."""
        ...

    @property
    def idempotency_key(self) -> str:
        """The same text each time this event is handled by this subscription."""
        ...

    @property
    def is_replayed(self) -> bool:
        """What its handler publishes was published before."""
        ...


@dataclass(frozen=True, slots=True)
class TxContext(Generic[R]):
    """What the calls of one subscription share.

    Attributes:
        overlay: What is written and not committed yet.
        subscription: Its name.
        resources: What the app's lifespan gave.
        enter: Asks for a turn at the store's statements.
    """

    overlay: Overlay
    subscription: str
    resources: R
    enter: Callable[[], Exclusive]


class Outgoing(msgspec.Struct, frozen=True):
    """Events that a handler publishes, with headers and the record that they follow from (``None``: the one handled)."""

    events: Sequence[AnyEvent]
    headers: Mapping[str, str] | None
    cause: Record[Any] | None


class Tx(Generic[R]):
    """One handler call's door to state and publishing. What it changes is committed with the progress, or not at all.

    Reads are awaited and see what the handler itself has written; writes are kept until the commit. It is closed when the handler ends.
    """

    __slots__ = ("_call", "_context", "_is_closed", "_rows", "exclusive", "outgoing", "reads", "scans", "writes")

    def __init__(self, call: Call, context: TxContext[R]) -> None:
        self._call = call
        self._context = context
        self._is_closed = False
        self.exclusive: Exclusive | None = None
        """Its turn at the store's statements, once it has asked for one."""
        self._rows: dict[StateKey, Versioned] = {}
        self.reads: dict[StateKey, int] = {}
        self.scans: list[ScanRead] = []
        self.writes: dict[StateKey, Write] = {}
        self.outgoing: list[Outgoing] = []

    @property
    def resources(self) -> R:
        """What the app's lifespan gave."""
        return self._context.resources

    @property
    def record(self) -> Record[Any]:
        """The record that is handled: the event with its envelope.

        Raises:
            TxRefused: The handler takes batches: use `records`.
        """
        return self._call.record()

    @property
    def records(self) -> Sequence[Record[Any]]:
        """All records that are handled by this call, in the order of the events that the handler was given."""
        return self._call.records()

    @property
    def replaying(self) -> bool:
        """Whether this event was handled before a replay: what the handler publishes is not published again."""
        return self._call.is_replayed

    @property
    def idempotency_key(self) -> str:
        """A text that is the same each time this event is handled by this subscription: for mail, payments and HTTP.

        Raises:
            TxRefused: The handler takes batches, which may be made up differently the next time.
        """
        return self._call.idempotency_key

    @overload
    async def get(self, state: Readable[V_co], key: Key) -> V_co | None: ...
    @overload
    async def get(self, state: Readable[V_co], key: Key, default: D) -> V_co | D: ...
    async def get(self, state: Readable[Any], key: Key, default: object = None) -> object:
        """Return the value of a row, or `default` where there is none.

        Raises:
            TxClosed: The handler has ended.
            TxRefused: The key cannot be one.
        """
        self._check()
        place = (state.name, key_text(key))
        write = self.writes.get(place)
        if isinstance(write, Put):
            return state.decode(write.value)
        if isinstance(write, Delete):
            return default
        row = self._rows.get(place)
        if row is None:
            known = self._context.overlay.known(place) if self.exclusive is None else None
            if known is not None:
                row = known
            else:
                exclusive = await self._turn()
                row = await (self._context.overlay.read(place) if exclusive is None else exclusive.read(place))
                self._check()
            row = self._rows.setdefault(place, row)
            self.reads[place] = row.version
        if write is not None:
            return state.decode(_sum(state.name, row.value, write))
        return default if row.value is None else state.decode(row.value)

    async def scan(
        self, state: Readable[V_co], prefix: KeyPart | tuple[KeyPart, ...] = ()
    ) -> AsyncIterator[tuple[tuple[str | int, ...], V_co]]:
        """Yield the rows whose key starts with the elements of `prefix`, in the order of their keys' text; all rows without one.

        Raises:
            TxClosed: The handler has ended.
            TxRefused: The prefix cannot be one.
        """
        self._check()
        text = "[]" if prefix == () else key_text(prefix)
        exclusive = await self._turn()
        rows = await (self._context.overlay.scan(state.name, text) if exclusive is None else exclusive.scan(state.name, text))
        self._check()
        self.scans.append(ScanRead(state.name, text, tuple((key, row.version) for key, row in rows)))
        seen = dict(rows)
        values: dict[str, bytes] = {key: row.value for key, row in rows if row.value is not None}
        for (name, key), write in self.writes.items():
            if name != state.name or not matches(key, text):
                continue
            if isinstance(write, Put):
                values[key] = write.value
            elif isinstance(write, Delete):
                values.pop(key, None)
            else:
                values[key] = _sum(state.name, seen[key].value if key in seen else None, write)
        for key in sorted(values):
            yield key_of(key), state.decode(values[key])

    async def sql(self, query: str, *params: object) -> list[tuple[Any, ...]]:
        """Run a statement on the app's own tables, in the store's database and in the transaction of this unit; return its rows.

        From the first call to its end the handler has the store for itself, for at most 250 ms: other handlers go on, and what they change
        waits. So do slow awaits before.

        Args:
            query: SQL with `?` for parameters. Tables of any name but the store's own, and none that begins with `everlog_`.
            params: None, int, float, str or bytes each.

        Raises:
            TxClosed: The handler has ended.
            SqlRefused: It touches the store's own tables, or begins or ends a transaction, attaches a file, or sets a PRAGMA.
            SqlFailed: The database refused it: a syntax error, a constraint. It changed nothing, and the handler may catch it and go on.
            SqlTimeout: The 250 ms are over; all that the handler did is taken back, and it has failed.
        """
        self._check()
        if self.exclusive is None:
            self.exclusive = self._context.enter()
        exclusive = await self._turn()
        assert exclusive is not None
        rows = await exclusive.execute(query, params)
        self._check()
        return rows

    def put(self, state: State[V], key: Key, value: V) -> None:
        """Set a row.

        Raises:
            TxClosed: The handler has ended.
            TxRefused: The value is not of the declared type, or the state belongs to another subscription.
        """
        self.writes[self._own(state, key)] = Put(state.encode(value))

    def add(self, state: State[V], key: Key, amount: V) -> None:
        """Add to the number in a row; a row that is missing counts as 0. Never in conflict with other units.

        Raises:
            TxClosed: The handler has ended.
            TxRefused: The amount is no number of the declared type, or the state belongs to another subscription.
        """
        place = self._own(state, key)
        state.check_amount(amount)
        number = cast("int | float | Decimal", amount)
        write = self.writes.get(place)
        if isinstance(write, Add):
            both = added(write.amount, number)
            if both is None:
                raise TxRefused(f"state {state.name!r}: {write.amount!r} and {number!r} do not add up to a number")
            self.writes[place] = Add(both)
        elif write is None:
            self.writes[place] = Add(number)
        else:
            base = write.value if isinstance(write, Put) else None
            self.writes[place] = Put(_sum(state.name, base, Add(number)))

    def delete(self, state: State[V], key: Key) -> None:
        """Remove a row; nothing happens where there is none.

        Raises:
            TxClosed: The handler has ended.
            TxRefused: The state belongs to another subscription.
        """
        self.writes[self._own(state, key)] = Delete()

    def publish(self, *events: AnyEvent, headers: Mapping[str, str] | None = None, cause: Record[Any] | None = None) -> None:
        """Publish events when this unit is committed, before those that the handler returns.

        Args:
            events: Instances of classes that were given to a topic; checked when the handler ends, so that a fault is the handler's.
            headers: CloudEvents extensions beside correlation and causation, which are set.
            cause: The record that they follow from; ``None`` is the one handled.

        Raises:
            TxClosed: The handler has ended.
        """
        self._check()
        self.outgoing.append(Outgoing(events, headers, cause))

    @property
    def has_effects(self) -> bool:
        """Something was read, written or published."""
        return bool(self.reads or self.writes or self.outgoing or self.scans or self.exclusive)

    def sums(self) -> dict[StateKey, bytes]:
        """Return what each addition comes to whose row was read.

        Raises:
            TxRefused: A row holds no number.
        """
        return {
            place: _sum(place[0], self._rows[place].value, write)
            for place, write in self.writes.items()
            if isinstance(write, Add) and place in self._rows
        }

    def close(self) -> None:
        """End it: later use raises."""
        self._is_closed = True

    def check_turn(self) -> None:
        """Refuse to end well where its turn at the store's statements is over.

        Raises:
            SqlError: It is: all that its statements did is taken back.
        """
        if self.exclusive is not None:
            self.exclusive.check()

    def abandon(self) -> None:
        """Take back what its statements did, if they are not on their way to the commit. Idempotent."""
        if self.exclusive is not None:
            self.exclusive.abandon()

    async def _turn(self) -> Exclusive | None:
        """Return its turn at the statements once it has it, ``None`` where it asked for none.

        In its turn it reads there: whoever waited for a unit of another handler would wait for itself.
        """
        if self.exclusive is not None:
            await self.exclusive.wait()
            self._check()
            self.exclusive.check()
        return self.exclusive

    def _check(self) -> None:
        if self._is_closed:
            raise TxClosed("tx was used after its handler had ended: await what you start before you return")

    def _own(self, state: State[Any], key: Key) -> StateKey:
        self._check()
        if state.subscription != self._context.subscription:
            raise TxRefused(
                f"state {state.name!r} belongs to subscription {state.subscription!r}, and {self._context.subscription!r} may only read it: "
                f"publish an event that its owner handles"
            )
        return state.name, key_text(key)


class PlainTx(Tx[R]):
    """What a plain function is given, in its thread: it writes and publishes, and cannot await."""

    __slots__ = ()

    def get(self, state: Readable[Any], key: Key, default: object = None) -> NoReturn:  # noqa: ARG002 as in `Tx`
        """Refuse. Raises `TxRefused`."""
        raise _async_only("get")

    def scan(self, state: Readable[Any], prefix: KeyPart | tuple[KeyPart, ...] = ()) -> NoReturn:  # noqa: ARG002 as in `Tx`
        """Refuse. Raises `TxRefused`."""
        raise _async_only("scan")

    def sql(self, query: str, *params: object) -> NoReturn:  # noqa: ARG002 as in `Tx`
        """Refuse. Raises `TxRefused`."""
        raise _async_only("sql")


def twin(tx: Tx[R], kind: type[Tx[R]] | None = None) -> Tx[R]:
    """Return a new `Tx` for another call of the same handler with the same records, of the same kind or another."""
    return (kind or type(tx))(tx._call, tx._context)  # noqa: SLF001 its own module  # pyright: ignore[reportPrivateUsage]


def _async_only(name: str) -> TxRefused:
    return TxRefused(f"tx.{name} has to be awaited, and this handler is a plain function: make it async (async def …)")


def _sum(state: str, value: bytes | None, write: Add) -> bytes:
    """Return what an addition comes to, exactly as the store does."""
    summed = total(value, write.amount)
    if summed is None:
        raise TxRefused(f"state {state!r} holds no number that {write.amount!r} could be added to")
    return summed
