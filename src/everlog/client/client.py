"""The client of one app or script: its door to the log."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Protocol, TypeVar, overload
from uuid import uuid4

import msgspec

from everlog.client.follower import Start, follow, parsed, start_of
from everlog.client.published import Published
from everlog.clock import Clock
from everlog.contracts.contract import Contract, contract_of
from everlog.contracts.envelope import Addressed, Origin, address
from everlog.contracts.event import AnyEvent
from everlog.contracts.record import Record
from everlog.contracts.topic import Topic
from everlog.errors import Closed, EventRefused, FeatureMissing, NotInHandler, TopicMissing
from everlog.key import canonical_text
from everlog.log import Log
from everlog.observe.tracing import Tracing
from everlog.position import Offset, Position, TopicPartition
from everlog.record import TRACEPARENT
from everlog.store import Emitted, Store
from everlog.subscriptions.context import in_handler


class Stages(Protocol):
    """Where events go that are committed in transactions of the app's own."""

    async def store(self) -> Store:
        """Return the store that takes them.

        Raises:
            FeatureMissing: It cannot.
        """
        ...


E = TypeVar("E", bound=AnyEvent)
E2 = TypeVar("E2", bound=AnyEvent)

DEFAULT_TIMEOUT_S: Final = 30.0
_MOST_KEY_CHARACTERS: Final = 500


class Client:
    """Publishes as one source, and follows the log. Made by `App.connect`; safe to share among the tasks of one event loop.

    Args:
        log: The log, open; closed by whoever opened it.
        source: Who publishes: the app's name.
        clock: The publisher's time.
        create_topics: Make a missing topic when it is first published to or followed.
        producer: A name under which numbers go on where an earlier sender of the same events stopped; ``None``: a random one.
        tracing: Makes a span of each call of `publish`; ``None``: there are none.
        staging: Takes events for transactions of the app's own; ``None``: there are none.
        spread: Which partition the first event without key goes to, and the next ones behind it; ``None``: anyone.
    """

    def __init__(
        self,
        log: Log,
        *,
        source: str,
        clock: Clock,
        create_topics: bool = True,
        producer: str | None = None,
        tracing: Tracing | None = None,
        spread: int | None = None,
        staging: Stages | None = None,
    ) -> None:
        self._staging = staging
        self._log = log
        self._source = source
        self._clock = clock
        self._create_topics = create_topics
        self._tracing = tracing
        from everlog.client.publisher import (
            Publisher,
        )  # with asyncio, which costs 40 ms: whoever only declares an app does without

        name = producer or f"{source}-{os.urandom(8).hex()}"
        from everlog.client.gathering import Gathering

        self._publisher = Publisher(log, name, named=producer is not None, clock=clock)
        self._gathering = Gathering(self._publisher, lambda: Origin(source, clock.wall_us(), None, self._next_partition))
        self._spread = itertools.count(int.from_bytes(os.urandom(2), "big") if spread is None else spread)
        self._closed = False

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    @property
    def log(self) -> Log:
        """The log that it speaks to."""
        return self._log

    async def publish(
        self,
        *events: AnyEvent,
        key: object = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        within: object = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Published:
        """Store events and return when they survive what the log's `features.durability` names.

        All are checked before one is sent. Events of one key keep the order of the calls. The events of one call that go to one
        partition are stored together or not at all.

        Args:
            events: At most 4,096 instances of classes that were given to a topic.
            key: The key of all, for topics declared with `key=None`.
            headers: CloudEvents extensions: names of lower-case letters and digits.
            idempotency_key: Store the one event once per key within 7 days, whoever sends it under the app's name; a repeat is told where it
                is. Its id comes from the key.
            within: A transaction of the app's own, in the database that its store is in: a connection of psycopg, or a session or connection
                of SQLAlchemy, asynchronous. The events are sent once *you* have committed it, by whichever process of the app holds the
                relay; what is published is known by its ids, and its place is not known yet.
            timeout_s: How long to wait for an answer, in seconds.

        Raises:
            EventRefused: An event breaks its contract; names the field. Nothing was stored.
            IdempotencyKeyReused: Another event was stored under the key. Nothing was stored.
            NotInHandler: Called inside a handler. Nothing was stored.
            FeatureMissing: The log or store cannot honour `idempotency_key` or `within`. Nothing was stored.
            StoreError: `within` is no transaction, or belongs to another database than the store. Roll it back.
            LogReadOnly: The log takes no writes now. Nothing was stored.
            PublishUnknown: No answer in time; `retry()` is safe.
        """
        if in_handler.get():
            raise NotInHandler(
                "inside a handler, return the event or write tx.publish(event), so that it is stored together with what the handler "
                "changes; client.publish_direct(event) sends it at once, and again whenever the handler is tried again"
            )
        if len(events) == 1 and (key, headers, idempotency_key, within) == (None, None, None, None) and not self._closed:
            event = events[0]
            if self._publisher.is_open(contract_of(type(event)).topic) and self._tracing is None:
                return await self._gathering.add(event, timeout_s)
        return await self._publish(events, key, headers, idempotency_key, within, timeout_s)

    async def publish_direct(
        self,
        *events: AnyEvent,
        key: object = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Published:
        """Store events as `publish` does, also inside a handler: apart from its unit, and again whenever it is tried again."""
        return await self._publish(events, key, headers, None, None, timeout_s)

    async def _publish(
        self,
        events: tuple[AnyEvent, ...],
        key: object,
        headers: Mapping[str, str] | None,
        idempotency_key: str | None,
        within: object,
        timeout_s: float,
    ) -> Published:
        self._check_open()
        self._gathering.flush()
        if within is not None and idempotency_key is not None:
            raise FeatureMissing(
                "publish(within=..., idempotency_key=...)",
                adapter="a transaction of your own",
                instead="let a unique row of yours say that it is new",
            )
        if idempotency_key is not None and not self._log.features.idempotency_keys:
            raise FeatureMissing(
                "publish(idempotency_key=...)",
                adapter="this log",
                instead="publish under a producer's name, or dedupe by the event's id",
            )
        if not events:
            raise EventRefused("expected at least one event to publish, found none")
        if self._tracing is None or (headers and TRACEPARENT in headers):  # whoever gives one says what it belongs to
            return await self._send(events, key, headers, idempotency_key, within, timeout_s)
        topics = {contract_of(type(event)).topic.name for event in events}
        with self._tracing.publishing(topics, len(events)) as carried:
            return await self._send(events, key, {**carried, **(headers or {})}, idempotency_key, within, timeout_s)

    async def _send(
        self,
        events: tuple[AnyEvent, ...],
        key: object,
        headers: Mapping[str, str] | None,
        idempotency_key: str | None,
        within: object,
        timeout_s: float,
    ) -> Published:
        if within is not None:
            store, emits = await self.staged(events, key=key, headers=headers)
            await store.stage(within, emits)
            return self._to_come(emits)
        origin = Origin(self._source, self._clock.wall_us(), headers or None, self._next_partition)
        addressed = (
            address(events, origin, key=key) if idempotency_key is None else self._once(events, origin, key, idempotency_key)
        )
        for target in addressed:
            if not self._publisher.is_open(target.topic):
                await self._publisher.open(target.topic, self._ensuring(target.topic))
        return await self._publisher.send(addressed, timeout_s=timeout_s)

    async def staged(
        self, events: Sequence[AnyEvent], *, key: object = None, headers: Mapping[str, str] | None = None
    ) -> tuple[Store, Sequence[Emitted]]:
        """Check events for a transaction of the app's own, and return the store that takes them. Raises as `publish`."""
        if self._staging is None:
            raise FeatureMissing(
                "publish(within=...)",
                adapter="this client",
                instead="use the client that `app.connect()` lends, which knows the app's store",
            )
        store = await self._staging.store()
        origin = Origin(self._source, self._clock.wall_us(), headers or None, self._next_partition)
        ids = [uuid4().hex for _ in events]  # nobody knows yet under which number each is sent
        addressed = address(events, origin, key=key, ids=ids)
        for target in addressed:
            if not self._publisher.is_open(target.topic):
                await self._publisher.open(target.topic, self._ensuring(target.topic))
        pairs = sorted(
            [
                (place, Emitted(target.topic.name, record))
                for target in addressed
                for place, record in zip(target.places, target.records, strict=True)
            ],
            key=lambda pair: pair[0],
        )
        return store, [emitted for _, emitted in pairs]

    def _to_come(self, emits: Sequence[Emitted]) -> Published:
        """Return what can be told before a transaction is committed: the ids, and no place."""
        return Published(lambda: [str(one.record.id) for one in emits], Position(self._log.identity, {}))

    def _once(self, events: Sequence[AnyEvent], origin: Origin, key: object, idempotency_key: object) -> Sequence[Addressed]:
        """Return the one event as a record that is stored once."""
        if len(events) != 1:
            raise EventRefused(
                f"expected one event with an idempotency key, found {len(events)}: give each a call and a key of its own"
            )
        if not isinstance(idempotency_key, str) or not 0 < len(idempotency_key) <= _MOST_KEY_CHARACTERS:
            raise EventRefused(
                f"expected an idempotency key of 1 to {_MOST_KEY_CHARACTERS} characters, found {type(idempotency_key).__name__} "
                f"{str(idempotency_key)[:60]!r}"
            )
        from hashlib import blake2b  # few need it, and it takes a while

        topic = contract_of(type(events[0])).topic
        try:
            id_ = blake2b(f"{self._source}\x1f{topic.name}\x1f{idempotency_key}".encode(), digest_size=16).hexdigest()
        except UnicodeEncodeError as error:
            raise EventRefused(
                f"the idempotency key {idempotency_key!r} holds a lone surrogate, which UTF-8 cannot carry"
            ) from error
        (target,) = address(events, origin, key=key, ids=[id_])
        (record,) = target.records
        if topic.key is None and key is None:  # a repeat goes where the first one went: the place is a part of what is told
            record = msgspec.structs.replace(record, partition=int(id_[:8], 16) % topic.partitions)
        return [Addressed(topic, [msgspec.structs.replace(record, once=idempotency_key)], target.places)]

    def _next_partition(self, topic: Topic) -> int:
        return next(self._spread) % topic.partitions

    def _ensuring(self, topic: Topic) -> Any:
        return lambda: self._log.ensure_topic(topic.spec()) if self._create_topics else self._check_topic(topic)

    async def _check_topic(self, topic: Topic) -> None:
        if all(spec.name != topic.name for spec in await self._log.topics()):
            raise TopicMissing(topic.name)

    @overload
    def follow(
        self, type1: type[E], /, *, start: Start = ..., after: Position | str | None = ..., key: object = ...
    ) -> AsyncIterator[Record[E]]: ...
    @overload
    def follow(
        self, type1: type[E], type2: type[E2], /, *, start: Start = ..., after: Position | str | None = ..., key: object = ...
    ) -> AsyncIterator[Record[E | E2]]: ...
    @overload
    def follow(
        self, *types: type[AnyEvent], start: Start = ..., after: Position | str | None = ..., key: object = ...
    ) -> AsyncIterator[Record[Any]]: ...
    async def follow(
        self, *types: type[Any], start: Start = "now", after: Position | str | None = None, key: object = None
    ) -> AsyncIterator[Record[Any]]:
        """Yield the records of some types as they are stored, each partition's in order, for ever. Keeps no progress.

        Args:
            types: Classes that were given to a topic.
            start: Where to begin: ``"now"``, ``"beginning"``, or at what was logged at or after a time.
            after: Begin behind a record's `position` or its token, without gap or double. Goes before `start`.
            key: Only records of this key.

        Raises:
            EventRefused: A class has no contract.
            PositionRefused: `after` is damaged, belongs to another log, or to what the log has lost since.
            RecordsGone: Retention deleted what was to come next: behind `after`, or before a slow follower had read it. Its `oldest`
                is the token to go on from.
            Closed: The client's log was closed.
        """
        self._check_open()
        contracts: list[Contract[Any]] = [contract_of(cls) for cls in types]
        if not contracts:
            raise EventRefused("expected at least one type to follow, found none")
        position = await parsed(self._log, after if isinstance(after, str) else after.token()) if after is not None else None
        for topic in {contract.topic.name: contract.topic for contract in contracts}.values():
            await self._ensuring(topic)()
        text = None if key is None else canonical_text(key)
        async for record in follow(self._log, contracts, start=start, after=position, key=text):
            yield record

    async def position_at(self, time: datetime, *types: type[AnyEvent]) -> Position:
        """Return the position before all that was logged at or after a time: `follow(*types, after=...)` goes on from there.

        Args:
            time: With a zone.
            types: The classes that are to be followed: the position names the partitions of their topics.

        Raises:
            EventRefused: No class, or one without a contract.
            TopicMissing: A topic does not exist, and the client makes none.
            ValueError: `time` has no zone.
            Closed: The client was closed.
        """
        self._check_open()
        if not types:
            raise EventRefused("expected at least one type to find the position of, found none")
        offsets: dict[TopicPartition, Offset] = {}
        for topic in {contract.topic.name: contract.topic for contract in map(contract_of, types)}.values():
            await self._ensuring(topic)()
            offsets.update(await start_of(self._log, topic.name, time))
        return Position(self._log.identity, offsets)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the client was closed: publish inside `async with app.connect() as client`")

    async def aclose(self) -> None:
        """Publish no more. Idempotent; the log stays open."""
        self._closed = True
        self._gathering.flush()
