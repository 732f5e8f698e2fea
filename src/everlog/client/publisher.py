"""Sending under numbers: each record once, in order, and nothing in doubt without a way to resolve it."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final
from uuid import UUID

from everlog.client.published import Published
from everlog.clock import Clock
from everlog.contracts.envelope import Addressed
from everlog.contracts.topic import Topic
from everlog.errors import EverlogError, LogReadOnly, PublishUnknown
from everlog.log import DEDUPE_RANGE, Appended, Log, ProducerBatch, Status
from everlog.position import Offset, Position, TopicPartition
from everlog.record import id_prefix

_IN_FLIGHT: Final = DEDUPE_RANGE // 2
"""Most numbers of a partition between the oldest without an answer and the newest sent."""
_MOST_AT_ONCE: Final = 1_000
_RETRY_FIRST_S: Final = 0.05
_RETRY_MOST_S: Final = 1.0


class Publisher:
    """One producer: its numbers in every topic partition, and what is on its way.

    Args:
        log: Where to.
        name: The producer's name; no two live senders share one.
        named: Remembered for ever by the log, and asked for its last numbers before the first record is sent.
        clock: For waiting between retries.
    """

    def __init__(self, log: Log, name: str, *, named: bool, clock: Clock) -> None:
        self.log = log
        self.name = name
        self.named = named
        self.clock = clock
        self._flows: dict[str, _Flow] = {}
        self._gates: dict[str, _Gate] = {}

    async def open(self, topic: Topic, ensure: Callable[[], Awaitable[None]] | None) -> None:
        """Make a topic ready to be sent to: make or check it, and learn a named producer's last numbers.

        Calls go on in the order in which they came.
        """
        gate = self._gates.setdefault(topic.name, _Gate())
        gate.in_line += 1
        try:
            async with gate.lock:
                if ensure is not None and gate.types != len(topic.contracts):  # it gets new ones when more modules are imported
                    await ensure()
                gate.types = len(topic.contracts)
                if topic.name not in self._flows:
                    last: Mapping[int, int] = await self.log.last_sequence(self.name, topic.name) if self.named else {}
                    self._flows[topic.name] = _Flow({partition: number + 1 for partition, number in last.items()})
        finally:
            gate.in_line -= 1

    def is_open(self, topic: Topic) -> bool:
        """Tell whether a topic can be sent to at once: it is ready, and nobody waits who came before."""
        gate = self._gates.get(topic.name)
        return gate is not None and gate.in_line == 0 and gate.types == len(topic.contracts)

    async def send(self, addressed: Sequence[Addressed], *, timeout_s: float) -> Published:
        """Append records under the next numbers and wait until all are stored.

        Each topic's partitions are stored whole or not at all. A lost answer is asked for again, under the same numbers.

        Raises:
            LogReadOnly: No answer to earlier events within `timeout_s` seconds; nothing was sent.
            PublishUnknown: No answer within `timeout_s` seconds.
            EverlogError: The log refused some; what of the other partitions is stored stays.
        """
        return await self.begin(addressed).finish(timeout_s)

    @property
    def most_at_once(self) -> int:
        """How many records of several calls may be sent together, so that the others of a partition have room."""
        return min(_MOST_AT_ONCE, _IN_FLIGHT)

    def begin(self, addressed: Sequence[Addressed]) -> Sending:
        """Hand records to the log under the next numbers, now; where too many are without an answer, take a place in the line."""
        counts = [Counter([record.partition for record in target.records]) for target in addressed]
        return Sending(self, addressed, [self._flows[target.topic.name] for target in addressed], counts)


class Sending:
    """One call's records, or those of several calls, on their way to the log."""

    def __init__(
        self,
        publisher: Publisher,
        addressed: Sequence[Addressed],
        flows: Sequence[_Flow],
        counts: Sequence[Mapping[int, int]],
    ) -> None:
        self._publisher = publisher
        self._addressed = addressed
        self._flows = flows
        self._counts = counts
        self._sends: Sequence[_Send] = ()
        self._started: Sequence[Awaitable[Appended]] = ()
        self._tickets: Sequence[object] = ()
        if any([flow.is_full(parts) for flow, parts in zip(flows, counts, strict=True)]):
            self._tickets = [flow.join() for flow in flows]
        else:
            self._start()

    def _start(self) -> None:
        # Numbers are taken and first sent without an await between: n + 1 never leaves before n.
        self._sends = [
            _Send(self._publisher, flow, target, flow.take(parts))
            for flow, target, parts in zip(self._flows, self._addressed, self._counts, strict=True)
        ]
        self._started = [send.start() for send in self._sends]

    async def finish(self, timeout_s: float) -> Published:
        """Wait until all are stored. Raises as `Publisher.send`."""
        if self._tickets:
            try:
                async with asyncio.timeout(timeout_s):
                    for flow, ticket, parts in zip(self._flows, self._tickets, self._counts, strict=True):
                        await flow.turn(ticket, parts)
            except TimeoutError as error:
                raise LogReadOnly(
                    f"the log has not answered earlier events within {timeout_s:g} s, and no more are sent meanwhile: nothing of this call "
                    f"was sent; publish it again later"
                ) from error
            finally:
                for flow, ticket in zip(self._flows, self._tickets, strict=True):
                    flow.give_up(ticket)
            self._start()
        try:
            await self._finish(self._sends, self._started, timeout_s)
        finally:
            for send in self._sends:
                send.leave()
        return _published(self._publisher.log.identity, self._sends)

    async def again(self, at: int, timeout_s: float) -> None:
        """Send what is in doubt of the topic of one event again, under the same numbers, and of no other topic. Raises as `finish`."""
        send, _ = self._place(at)
        await self._finish([send], [] if send.is_settled else [send.start()], timeout_s)

    def error_of(self, at: int, error: EverlogError | None) -> EverlogError | None:
        """Return why the event at a place of the call is not known to be stored; ``None`` where it is stored.

        Args:
            at: Its place.
            error: What `finish` or `again` raised.
        """
        if error is None or not self._sends:
            return error
        send, index = self._place(at)
        if send.appended is None:
            return send.error or error
        return send.appended.errors[index] if send.appended.errors else None

    def published(self, at: int) -> Published:
        """Return what is told of the event at a place of the call, once it is stored."""
        send, index = self._place(at)
        assert send.appended is not None
        offset = send.appended.offsets[index]
        where = TopicPartition(send.target.topic.name, send.target.records[index].partition)
        return Published(
            partial(_id_at, send, index), Position(self._publisher.log.identity, {} if offset is None else {where: offset})
        )

    def _place(self, at: int) -> tuple[_Send, int]:
        if len(self._sends) == 1:
            return self._sends[0], at
        return next((send, send.target.places.index(at)) for send in self._sends if at in send.target.places)

    async def _finish(self, sends: Sequence[_Send], started: Sequence[Awaitable[Appended]], timeout_s: float) -> None:
        """Wait for the answers to those of the sends that have none; one that is refused does not end the waiting for the others."""
        try:
            async with asyncio.timeout(timeout_s):
                for send, answer in zip([send for send in sends if not send.is_settled], started, strict=True):
                    await send.settle(answer)
        except TimeoutError as error:

            async def retry(timeout_s: float = timeout_s) -> Published:
                await self._finish(sends, [send.start() for send in sends if not send.is_settled], timeout_s)
                return _published(self._publisher.log.identity, sends)

            raise PublishUnknown(
                f"the log did not answer within {timeout_s:g} s, so whether the events are stored is unknown: "
                f"`await error.retry()` sends them again under the same numbers, and they are stored once",
                retry,
            ) from error
        finally:
            for answer in started:
                if asyncio.iscoroutine(answer):
                    answer.close()
        refused = next((send.error for send in sends if send.error is not None), None)
        if refused is not None:
            raise refused


class _Gate:
    """Who waits for a topic to be made ready, in line."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.in_line = 0
        self.types = 0
        """How many of the topic's types the log knows."""


class _Flow:
    """The numbers of one producer in the partitions of one topic, and those without an answer."""

    def __init__(self, next_: dict[int, int]) -> None:
        self._next = next_
        self._open: dict[int, dict[int, None]] = {}  # partition → first numbers of sends without an answer, oldest first
        self._line: deque[object] = deque()
        self._room = asyncio.Event()

    def is_full(self, parts: Mapping[int, int]) -> bool:
        """Tell whether a send has to wait: for answers to older ones, or behind others that wait."""
        return bool(self._line) or not self._fits(parts)

    def _fits(self, parts: Mapping[int, int]) -> bool:
        for partition, count in parts.items():
            open_ = self._open.get(partition)
            if open_ and self._next.get(partition, 0) + count - next(iter(open_)) > _IN_FLIGHT:
                return False
        return True

    def join(self) -> object:
        """Take the last place in the line, and return a ticket for it."""
        ticket = object()
        self._line.append(ticket)
        return ticket

    async def turn(self, ticket: object, parts: Mapping[int, int]) -> None:
        """Wait until the ticket is the first in the line and there is room; its place is kept until `give_up`."""
        while self._line[0] is not ticket or not self._fits(parts):
            self._room.clear()
            await self._room.wait()

    def give_up(self, ticket: object) -> None:
        """Leave the line."""
        self._line.remove(ticket)
        self._room.set()

    def take(self, parts: Mapping[int, int]) -> Mapping[int, int]:
        """Return the first number for each partition, and count them as on their way."""
        first: dict[int, int] = {}
        for partition, count in parts.items():
            number = first[partition] = self._next.get(partition, 0)
            self._next[partition] = number + count
            self._open.setdefault(partition, {})[number] = None
        return first

    def leave(self, first: Mapping[int, int]) -> None:
        """Count a send as answered, or given up."""
        for partition, number in first.items():
            self._open[partition].pop(number, None)
        self._room.set()


class _Send:
    """Records of one topic under their numbers, until the log has said what became of them."""

    def __init__(self, publisher: Publisher, flow: _Flow, target: Addressed, first: Mapping[int, int]) -> None:
        self._publisher = publisher
        self._flow = flow
        self.target = target
        self.first = first
        self._was_in_doubt = False
        self.appended: Appended | None = None
        self.error: EverlogError | None = None
        """Why it is not stored, or not all of it."""

    @property
    def is_settled(self) -> bool:
        """The log has said what became of it."""
        return self.appended is not None

    def start(self) -> Awaitable[Appended]:
        """Hand the records to the log, now."""
        sender = self._publisher
        batch = ProducerBatch(sender.name, self.first, sender.named)
        return sender.log.append(self.target.topic.name, self.target.records, producer=batch)

    async def settle(self, answer: Awaitable[Appended]) -> None:
        """Wait for the answer; send again, under the same numbers, as long as it is unknown. What is refused is in `error`."""
        self.error = None
        for attempt in itertools.count(1):
            try:
                appended = await answer
            except LogReadOnly as error:
                if not self._was_in_doubt:
                    self.error = error
                    return
            except EverlogError as error:
                self.error = error
                return
            else:
                if self.is_settled:  # by another retry, whose answer says where it was stored
                    return
                if Status.UNKNOWN not in appended.statuses:
                    self.appended = appended
                    self.error = next((error for error in appended.errors if error is not None), None)
                    return
                self._was_in_doubt = True
            pause_s = min(_RETRY_MOST_S, _RETRY_FIRST_S * 2**attempt)
            await self._publisher.clock.sleep(random.uniform(0, pause_s))  # noqa: S311 full jitter, no secret
            answer = self.start()

    def leave(self) -> None:
        """Let later sends have the room that this one took."""
        self._flow.leave(self.first)

    def ids(self) -> list[str]:
        """Return the id of each record."""
        topic = self.target.topic.name
        prefixes = {partition: id_prefix(self._publisher.name, topic, partition) for partition in self.first}
        numbers = {partition: itertools.count(first) for partition, first in self.first.items()}
        derived = [f"{prefixes[record.partition]}{next(numbers[record.partition])}" for record in self.target.records]
        return [record.id or id_ for record, id_ in zip(self.target.records, derived, strict=True)]


def _id_at(send: _Send, index: int) -> Sequence[str]:
    return [send.ids()[index]]


def _published(log: UUID, sends: Sequence[_Send]) -> Published:
    offsets: dict[TopicPartition, Offset] = {}
    for send in sends:
        if send.appended is None:
            continue
        topic = send.target.topic.name
        partitions = [record.partition for record in send.target.records]
        last = dict(zip(partitions, send.appended.offsets, strict=True))  # they grow in each partition
        if None in last.values():  # some were stored before
            last = {
                partition: offset
                for partition, offset in zip(partitions, send.appended.offsets, strict=True)
                if offset is not None
            }
        offsets.update({TopicPartition(topic, partition): offset for partition, offset in last.items() if offset is not None})
    return Published(partial(_ids, sends), Position(log, offsets))


def _ids(sends: Sequence[_Send]) -> Sequence[str]:
    if len(sends) == 1:
        return sends[0].ids()
    return [id_ for _, id_ in sorted([pair for send in sends for pair in zip(send.target.places, send.ids(), strict=True)])]
