"""The relay: sends a store's outbox to the log, under numbers that the store has committed before.

A successor sends the same numbered records from the first one without an answer, in order; whatever a stalled predecessor still gets out
is a duplicate to the log.

The table is the truth. What this process commits itself is handed over by the commit that numbers it, so that it is not read back:

    committer ── offer ──► commit: units · numbers for all rows behind `after` · rows in `done` removed
              ── handed ─► relay: append to the log ──► done, for the next commit

That holds from when the relay has caught up with the table until something is left in it that was not sent. Then it looks into the table again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from everlog.clock import Clock
from everlog.errors import EverlogError, LeaseLost, LogReadOnly, TopicMissing
from everlog.log import Log, ProducerBatch, Status
from everlog.store import RELAY, Handover, Lease, OutboxRow, Store, relay_producer

BATCH_ROWS: Final = 1_000
_MOST_HANDED: Final = 4
"""So many groups of the committer wait at most to be sent. More stay in the table, where they need no memory."""
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
        self._is_empty = asyncio.Event()
        self._after = 0
        """Rows of the outbox up to here have their numbers, and were sent or are about to be, but for what `_look_from` says."""
        self._look_from: int | None = 0
        """Behind this row the table holds what nobody has handed over; ``None``: it holds no such rows, as far as is known."""
        self._handed: list[Sequence[OutboxRow]] = []
        self._offered: Handover | None = None
        """What a commit that has not ended was asked for."""
        self._done: list[int] = []
        """Sent, and not removed yet."""

    @property
    def is_ours(self) -> bool:
        """This process is the one that sends."""
        return self._lease is not None

    def wake(self) -> None:
        """Look into the outbox."""
        self._wake.set()
        self._is_empty.clear()

    def offer(self, *, has_events: bool) -> Handover | None:
        """Return what a commit should do for the relay; ``None``: nothing. `handed` has to follow.

        Args:
            has_events: It puts something into the outbox.
        """
        is_behind = self._look_from is not None or len(self._handed) >= _MOST_HANDED
        if self._lease is None or self._offered is not None or is_behind or not (has_events or self._done):
            return None
        self._offered = Handover(self._lease, self._after, self._done)
        self._done = []
        return self._offered

    def handed(self, handover: Handover) -> None:
        """Take what a commit has numbered, or note that it has not, or that nobody knows. Called once it has ended, however it did."""
        if handover is not self._offered:  # the lease was lost meanwhile: a successor finds all of it in the table
            return
        self._offered = None
        if handover.numbered is None:
            self._done.extend(handover.done)
            self._look_again(self._after)
        elif (
            handover.numbered and self._look_from is None
        ):  # else something before it has to be sent first, and all is read in order
            self._handed.append(handover.numbered)
            self._after = handover.numbered[-1].id
        self.wake()

    async def run(self) -> None:
        """Send what is there, wait, and again, until cancelled."""
        pause_s = _PAUSE_FIRST_S
        while True:
            self._wake.clear()
            try:
                if self._lease is None:
                    self._lease = await self._store.acquire(RELAY)
                if self._lease is not None:
                    await self._send_all(self._lease)
                    pause_s = _PAUSE_FIRST_S
            except LeaseLost:
                self._forget()
            except EverlogError as error:
                self._look_again(0)
                if not error.retryable:
                    _logger.error("the outbox waits, and nothing of it is lost; trying again in %.1f s: %s", pause_s, error)
                await self._clock.sleep(pause_s)
                pause_s = min(_PAUSE_MOST_S, pause_s * 2)
                continue
            except BaseException:
                self._look_again(0)  # should it be run again
                raise
            if self._offered is None:  # else it wakes us when it has ended
                self._is_empty.set()
            await self._wake.wait()

    async def drain(self) -> None:
        """Wait until the outbox was seen empty after this call, or another process sends it."""
        self.wake()
        await self._is_empty.wait()

    async def release(self) -> None:
        """Give the lease back."""
        if self._lease is not None:
            lease = self._lease
            self._forget()
            await self._store.release(lease)

    def _forget(self) -> None:
        """Let go of the lease, and of all that was known under it."""
        self._lease = self._offered = None
        self._after = 0
        self._done.clear()
        self._look_again(0)

    def _look_again(self, after: int) -> None:
        """Look into the table before anything else is sent: what was handed over and not sent is there too, in its place."""
        self._look_from = after if self._look_from is None else min(after, self._look_from)
        if self._handed:
            self._handed.clear()
            self._look_from = 0

    async def _send_all(self, lease: Lease) -> None:
        await self._send_handed(lease)
        if self._offered is None:  # else it wakes us when it has ended
            await self._send_table(lease)
            await self._send_handed(lease)
        if self._offered is None:
            await self._remove_done(lease)

    async def _send_handed(self, lease: Lease) -> None:
        """Send what commits have handed over, which is numbered behind all that was sent before."""
        while self._handed:
            handed = [row for rows in self._handed for row in rows]
            self._handed.clear()
            for start in range(0, len(handed), BATCH_ROWS):
                if not await self._send_rows(lease, handed[start : start + BATCH_ROWS]):
                    self._look_again(0)
                    return

    async def _send_table(self, lease: Lease) -> None:
        """Send what the table holds and nobody has handed over. No commit hands over anything until all of it has numbers."""
        if self._look_from is None:
            self._look_from = self._after
        after = self._look_from
        if after < self._after:  # or what was sent and not removed would be found there
            await self._remove_done(lease)
        is_sent = True
        while rows := await self._store.outbox(after=after, limit=BATCH_ROWS):
            done, self._done = self._done, []
            numbered = await self._store.number(lease, [row.id for row in rows], done=done)
            after = rows[-1].id
            is_last = len(rows) < BATCH_ROWS
            if is_last and is_sent:
                self._caught_up(after)  # before these are sent: what is committed meanwhile comes behind them
            is_sent = await self._send_rows(lease, numbered) and is_sent
            if is_last:
                break
        else:
            if is_sent:
                self._caught_up(after)
        if not is_sent:
            self._look_again(0)

    def _caught_up(self, after: int) -> None:
        """All rows up to this one have numbers: commits number the rest."""
        self._after = max(after, self._after)
        self._look_from = None

    async def _send_rows(self, lease: Lease, rows: Sequence[OutboxRow]) -> bool:
        """Send numbered rows; tells whether the log holds all of them."""
        done = await self._send(lease, rows)
        self._done.extend(done)
        return len(done) == len(rows)

    async def _remove_done(self, lease: Lease) -> None:
        if self._done:
            done, self._done = self._done, []
            await self._store.number(lease, [], done=done)

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
