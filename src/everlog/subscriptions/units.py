"""From what a handler did to a unit: its writes, and the events that it publishes, checked and addressed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any, cast

from everlog.clock import Clock
from everlog.contracts.envelope import Origin, address, address_one
from everlog.contracts.topic import Topic
from everlog.errors import TxRefused
from everlog.position import Offset, TopicPartition
from everlog.record import CAUSATION_ID, CORRELATION_ID, TRACEPARENT
from everlog.store import Emitted, Outcome, Put, Slot, StateKey, Unit
from everlog.subscriptions.call import BatchCall, Call
from everlog.subscriptions.overlay import Overlay
from everlog.subscriptions.tx import Outgoing, Tx

_ROW_BYTES = 100


class Units:
    """Makes the units of one subscription in one process.

    Args:
        app, subscription, generation: Who handles, under its first name: part of the ids of what is published.
        versions: Numbers that no other unit of the store has.
        overlay: Where a unit's writes are shown until they are committed.
        clock: The publisher's time.
    """

    def __init__(
        self,
        app: str,
        subscription: str,
        generation: int,
        *,
        versions: Iterator[int],
        overlay: Overlay,
        clock: Clock,
    ) -> None:
        self._app = app
        self._subscription = subscription
        self.generation = generation
        self._versions = versions
        self._overlay = overlay
        self._clock = clock
        self._spread = itertools.count()

    @property
    def key_prefix(self) -> str:
        """How the idempotency key of an event starts."""
        return f"{self._app}/{self._subscription}"

    @property
    def generation(self) -> int:
        """The generation of the subscription, which a replay raises."""
        return self._generation

    @generation.setter
    def generation(self, number: int) -> None:
        self._generation = number
        self._prefix = id_prefix(self._app, self._subscription, number)

    def make(
        self,
        slot: Slot,
        lane: str | None,
        finishes: Sequence[tuple[TopicPartition, Offset]],
        call: Call | BatchCall,
        tx: Tx[Any] | None,
        result: object,
    ) -> Unit | None:
        """Return what a handler's call changes; ``None`` where it read, changed and published nothing.

        Raises:
            EventRefused: An event that it publishes breaks its contract.
            TxRefused: It returned what is no event.
            SqlError: Its turn at the store's statements is over.
        """
        if tx is not None:
            tx.check_turn()  # here, and not when the unit is queued: what it writes would be shown for ever
        outgoing = list(tx.outgoing) if tx is not None else []
        if result is not None:
            outgoing.append(Outgoing(_returned(result), None, None))
        if not outgoing and (tx is None or not (tx.writes or tx.reads or tx.scans or tx.exclusive)):
            return None
        unit = Unit(slot, lane, next(self._versions), finishes)
        sums: dict[StateKey, bytes] = {}
        if tx is not None:
            unit.reads, unit.scans, unit.writes, sums = tx.reads, tx.scans, tx.writes, tx.sums()
        if outgoing:
            emits = self._emits(outgoing, call)  # a replay refuses what the first run would have refused
            unit.emits = emits if self.publishes(call) else []
        unit.size = sum([_ROW_BYTES + len(emitted.record.data) for emitted in unit.emits])
        unit.size += sum([_ROW_BYTES + (len(write.value) if isinstance(write, Put) else 0) for write in unit.writes.values()])
        self._overlay.apply(unit, sums)
        return unit

    def publishes(self, call: Call | BatchCall) -> bool:
        """Tell whether what a handler publishes goes out: not where a replay knows that it did before."""
        return not call.is_replayed

    def bare(self, slot: Slot, lane: str | None, finishes: Sequence[tuple[TopicPartition, Offset]]) -> Unit:
        """Return a unit that writes no state: to hold, release or skip records."""
        return Unit(slot, lane, next(self._versions), finishes)

    def settled(self, unit: Unit, outcome: Outcome) -> None:
        """Note that a unit is committed, or never will be."""
        self._overlay.forget(unit, is_committed=outcome is Outcome.COMMITTED)

    def _emits(self, outgoing: Sequence[Outgoing], call: Call | BatchCall) -> list[Emitted]:
        handled = call.stored()
        emits: list[Emitted] = []
        indices: dict[str, Iterator[int]] = {}
        now_us = self._clock.wall_us()
        for out in outgoing:
            cause = out.cause.stored if out.cause is not None else handled
            headers = dict(out.headers or {})
            headers.setdefault(CORRELATION_ID, cause.headers.get(CORRELATION_ID, cause.id))
            headers.setdefault(CAUSATION_ID, cause.id)
            if TRACEPARENT in cause.headers:
                headers.setdefault(TRACEPARENT, cause.headers[TRACEPARENT])
            # Stable when the same record is handled again; a cause from elsewhere can be that of several.
            known = cause if cause is handled or call.has(cause) else handled
            text = f"{known.source}\x1f{known.id}\x1f"
            index = indices.setdefault(text, itertools.count())
            origin = Origin(self._app, now_us, headers, self._next_partition)
            if (
                len(out.events) == 1 and cause is handled and not out.headers
            ):  # as nearly always; a log takes no headers that need a check
                topic, record = address_one(out.events[0], origin, self._id(text, next(index)))
                emits.append(Emitted(topic.name, record))
                continue
            ids = [self._id(text, next(index)) for _ in out.events]
            addressed = address(out.events, origin, ids=ids)
            placed: list[tuple[int, Emitted]] = []
            for target in addressed:
                placed.extend(
                    (place, Emitted(target.topic.name, record))
                    for place, record in zip(target.places, target.records, strict=True)
                )
            placed.sort(key=_place)
            emits.extend(emitted for _, emitted in placed)
        return emits

    def _id(self, cause: str, index: int) -> str:
        return id_of(self._prefix, cause, index)

    def _next_partition(self, topic: Topic) -> int:
        return next(self._spread) % topic.partitions


def id_prefix(app: str, subscription: str, generation: int) -> str:
    """Return what the ids of all that a generation of a subscription publishes have in common."""
    return f"{app}\x1f{subscription}\x1f{generation}\x1f"


def id_of(prefix: str, cause: str, index: int) -> str:
    """Return the id of what a handler publishes.

    Args:
        prefix: Who publishes.
        cause: Source and id of what it follows from, each with U+001F behind it.
        index: Which it is of all that follow from that.
    """
    return blake2b(f"{prefix}{cause}{index}".encode(), digest_size=16).hexdigest()


def _place(pair: tuple[int, Emitted]) -> int:
    return pair[0]


def _returned(result: Any) -> Sequence[Any]:
    if isinstance(result, list | tuple):
        return cast("Sequence[Any]", result)
    if isinstance(result, str | bytes | int | float | dict | set):
        shown = f"{type(cast('object', result)).__name__} {str(cast('object', result))[:60]!r}"
        raise TxRefused(f"the handler returned {shown}: expected None, an event or a sequence of events")
    return (result,)
