"""The relay: sends a store's outbox to the log, under numbers that the store has committed before.

A successor sends the same numbered records from the first one without an answer, in order; whatever a stalled predecessor still gets out
is a duplicate to the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from everlog.clock import Clock
from everlog.errors import EverlogError, LeaseLost, LogReadOnly, TopicMissing
from everlog.log import Log, ProducerBatch, Status
from everlog.store import RELAY, Lease, OutboxRow, Store, relay_producer

BATCH_ROWS: Final = 1_000
_PAUSE_FIRST_S: Final = 0.05
_PAUSE_MOST_S: Final = 5.0

_logger: Final = logging.getLogger("everlog")


class Relay:
    """Sends while it holds the relay's lease; `wake` is enough to make it look.

    Args:
        log, store: Where to, and where from.
        clock: For pauses after a failure.
    """

    def __init__(self, log: Log, store: Store, *, clock: Clock) -> None:
        self._log = log
        self._store = store
        self._clock = clock
        self._producer = relay_producer(store.identity, store.incarnation)
        self._wake = asyncio.Event()
        self._lease: Lease | None = None
        self._begun = 0  # passes over the outbox
        self._ended = 0  # the last of them that found nothing more, or was another process's to make
        self._has_ended = asyncio.Event()
        self.sent = 0
        """How many events this process has sent."""

    @property
    def is_ours(self) -> bool:
        """This process is the one that sends."""
        return self._lease is not None

    def wake(self) -> None:
        """Look into the outbox."""
        self._wake.set()

    async def run(self) -> None:
        """Send what is there, wait, and again, until cancelled."""
        pause_s = _PAUSE_FIRST_S
        while True:
            self._wake.clear()
            self._begun += 1
            try:
                if self._lease is None:
                    self._lease = await self._store.acquire(RELAY)
                if self._lease is not None:
                    await self._send_all(self._lease)
                    pause_s = _PAUSE_FIRST_S
            except LeaseLost:
                self._lease = None
            except EverlogError as error:
                if not error.retryable:
                    _logger.error("the outbox waits, and nothing of it is lost; trying again in %.1f s: %s", pause_s, error)
                await self._clock.sleep(pause_s)
                pause_s = min(_PAUSE_MOST_S, pause_s * 2)
                continue
            self._ended = self._begun
            self._has_ended.set()
            await self._wake.wait()

    async def drain(self) -> None:
        """Wait until the outbox was seen empty after this call, or another process sends it."""
        wanted = self._begun + 1  # the pass that is under way may have looked already
        self.wake()
        while self._ended < wanted:
            self._has_ended.clear()
            await self._has_ended.wait()

    async def release(self) -> None:
        """Give the lease back."""
        if self._lease is not None:
            lease, self._lease = self._lease, None
            await self._store.release(lease)

    async def _send_all(self, lease: Lease) -> None:
        after = 0
        done: list[int] = []
        while True:
            rows = await self._store.outbox(after=after, limit=BATCH_ROWS)
            if not rows:
                if done:
                    await self._store.number(lease, [], done=done)
                return
            numbered = await self._store.number(lease, [row.id for row in rows], done=done)
            done = await self._send(lease, numbered)
            self.sent += len(done)
            after = rows[-1].id

    async def _send(self, lease: Lease, rows: Sequence[OutboxRow]) -> list[int]:
        """Send numbered rows until each is stored, or its key waits behind one refused for good; return those that are stored."""
        done: list[int] = []
        for topic in dict.fromkeys(row.emitted.topic for row in rows):
            try:
                await self._send_topic(lease, topic, [row for row in rows if row.emitted.topic == topic], done)
            except TopicMissing as error:  # somebody deleted it; other topics go on
                _logger.error("events for a topic wait in the outbox, and none is lost: %s", error)
        return done

    async def _send_topic(self, lease: Lease, topic: str, rows: Sequence[OutboxRow], done: list[int]) -> None:
        refused: set[str] = set()
        waiting = list(rows)
        pause_s = _PAUSE_FIRST_S
        while waiting:
            batch, rest = _gapless(waiting)
            in_doubt = await self._append(lease, topic, batch, done, refused)
            if in_doubt:
                await self._clock.sleep(pause_s)
                pause_s = min(_PAUSE_MOST_S, pause_s * 2)
            waiting = [row for row in in_doubt + rest if row.emitted.record.key not in refused]

    async def _append(
        self, lease: Lease, topic: str, rows: Sequence[OutboxRow], done: list[int], refused: set[str]
    ) -> list[OutboxRow]:
        """Append rows; note what is stored in `done`, keep what is refused; return what has to be sent again, in order."""
        statuses, errors = await self._statuses(topic, rows)
        partitions: dict[int, list[OutboxRow]] = {}  # those that were refused whole
        in_doubt: list[OutboxRow] = []
        for row, status, error in zip(rows, statuses, errors, strict=True):
            if status in (Status.STORED, Status.DUPLICATE):
                done.append(row.id)
            elif status is Status.UNKNOWN:
                in_doubt.append(row)
            elif len(rows) > 1:
                partitions.setdefault(row.emitted.record.partition, []).append(row)
            else:
                await self._refuse(lease, row, error, refused)
        for suspects in partitions.values():  # find the guilty one, in order
            for at, row in enumerate(suspects):
                if row.emitted.record.key in refused:
                    continue
                if await self._append(lease, topic, [row], done, refused):
                    in_doubt.extend(suspects[at:])
                    break
        return in_doubt

    async def _statuses(self, topic: str, rows: Sequence[OutboxRow]) -> tuple[Sequence[Status], Sequence[EverlogError | None]]:
        first: dict[int, int] = {}
        for row in rows:
            assert row.sequence is not None
            first.setdefault(row.emitted.record.partition, row.sequence)
        try:
            appended = await self._log.append(
                topic, [row.emitted.record for row in rows], producer=ProducerBatch(self._producer, first, named=True)
            )
        except LogReadOnly as error:
            _logger.error("the outbox waits, and nothing of it is lost: %s", error)
            return [Status.UNKNOWN] * len(rows), [error] * len(rows)
        return appended.statuses, appended.errors or [None] * len(rows)

    async def _refuse(self, lease: Lease, row: OutboxRow, error: EverlogError | None, refused: set[str]) -> None:
        key = row.emitted.record.key
        _logger.error(
            "the log refuses an event of topic %r with key %r for good; its key waits in the outbox: %s",
            row.emitted.topic,
            key,
            error,
        )
        await self._store.refuse(lease, row.id, str(error))
        if key is not None:
            refused.add(key)


def _gapless(rows: Sequence[OutboxRow]) -> tuple[list[OutboxRow], list[OutboxRow]]:
    """Split off the rows that can go in one append: consecutive numbers in each partition."""
    next_: dict[int, int] = {}
    batch: list[OutboxRow] = []
    for at, row in enumerate(rows):
        partition, sequence = row.emitted.record.partition, row.sequence
        assert sequence is not None
        if next_.get(partition, sequence) != sequence:
            return batch, list(rows[at:])
        next_[partition] = sequence + 1
        batch.append(row)
    return batch, []
