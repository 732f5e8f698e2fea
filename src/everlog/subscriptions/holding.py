"""What becomes of a record whose handler fails: its key is held in the store, tried again, and parked; later records queue up behind it."""

from __future__ import annotations

import logging
from typing import Any, Final, Literal, Protocol, cast

from everlog.errors import UNREADABLE, EventRefused, HandlerExited, HandlerKilled, LeaseLost, SqlRefused, TxClosed, TxRefused
from everlog.position import Offset, TopicPartition
from everlog.record import StoredRecord
from everlog.store import Attempt, Cause, Held, Hold, Outcome, Retried, Room, Skip, Unit
from everlog.subscriptions.call import Call
from everlog.subscriptions.careful import note
from everlog.subscriptions.committer import Pending
from everlog.subscriptions.declaration import Branch, SubscriptionDeclaration
from everlog.subscriptions.delivery import Retry
from everlog.subscriptions.failure import describe
from everlog.subscriptions.lane import Lane, Waiting
from everlog.subscriptions.lanes import Lanes, conflict_pause_us
from everlog.subscriptions.progress import SlotWork
from everlog.subscriptions.run import Run, Unreadable, choose
from everlog.subscriptions.surroundings import Surroundings
from everlog.subscriptions.tally import Tally
from everlog.subscriptions.tx import Tx
from everlog.subscriptions.units import Units
from everlog.subscriptions.worker import Worker

ROOM: Final = Room(records=100_000, size_bytes=1 << 30)
"""How much a subscription may hold. At the bound its slots stop, and nothing is dropped."""

_UNREADABLE_S: Final = 1.0
"""How long to wait for a disk that does not answer."""
_OWN_FAULTS: Final = (HandlerKilled, HandlerExited, TxRefused, TxClosed, EventRefused, SqlRefused)
"""What no outage makes a handler do."""

_logger: Final = logging.getLogger("everlog")


def _cause(error: Exception) -> Cause:
    return Cause.KILLED if isinstance(error, HandlerKilled) else Cause.FAILED


class Unhandled(EventRefused):
    """A held record that the running code cannot read: parked at once, whatever the policy."""


class Host(Protocol):
    """What runs the handlers."""

    async def invoke(
        self, me: Worker, branch: Branch, event: object, call: Call, work: SlotWork
    ) -> tuple[Tx[Any] | None, object]:
        """Call a handler in its lane, under its time limit; raises what it raises."""
        ...

    def fill_slot(self, work: SlotWork) -> None:
        """Note that the subscription holds as much as it may."""
        ...

    @property
    def is_paused(self) -> bool:
        """The subscription is paused: attempts do not count."""
        ...

    @property
    def is_listening(self) -> bool:
        """Successes are to be told."""
        ...

    def succeeded(self, key: str) -> None:
        """Note that an event of a key was handled."""
        ...

    def failed(self, key: str, error: Exception) -> None:
        """Note that an event of a key failed, with an error that is to be tried again."""
        ...

    def finished(self, run: Run, offset: Offset) -> None:
        """Note that a record is finished for good."""
        ...

    def lose_slot(self, work: SlotWork) -> None:
        """Note that another process owns the slot."""
        ...

    def stop_taking(self, work: SlotWork) -> None:
        """Take nothing more of the slot."""
        ...


class Holding:
    """Failed, unreadable and waiting records of one subscription.

    Args:
        declaration: Whose policies decide.
        host: Runs handlers.
        lanes: The lanes of the keys.
        units: Makes the units.
        around: What the process's engines share.
        room: How much the subscription may hold.
        tally: Counts what fails, and what becomes of it.
    """

    def __init__(
        self,
        declaration: SubscriptionDeclaration,
        host: Host,
        lanes: Lanes,
        units: Units,
        around: Surroundings,
        room: Room,
        tally: Tally,
    ) -> None:
        self._declaration = declaration
        self._host = host
        self._lanes = lanes
        self._units = units
        self._store = around.store
        self._committer = around.committer
        self._overlay = around.overlay
        self._log = around.log.identity
        self._clock = around.clock
        self._careful = around.careful
        self._dice = around.dice
        self._room = room
        self._tally = tally
        self._prefix = f"{declaration.app}/{declaration.name}"

    # ---- records from the log ----

    async def fail(self, lane: Lane, waiting: Waiting, error: Exception) -> None:
        """Decide what follows a record's first failure, once the earlier units of its key are committed."""
        if await self._has_to_wait(lane, waiting):
            return
        self._tally.failed += 1
        run, offset = waiting.run, waiting.run.chunk.offset(waiting.index)
        handler = cast("Branch", waiting.branch).handler.name
        policy = self._declaration.delivery.policy(error)
        line, trace = describe(error)
        if policy == "skip":
            _logger.warning("%s: %s failed on key %r and is skipped, as on_error says: %s", self._prefix, handler, lane.key, line)
            unit = self._units.bare(lane.work.slot, None, [(run.chunk.where, offset)])
            unit.skips = [Skip(lane.key, run.chunk.record(waiting.index), line)]
            self._committer.put(Pending(unit, lane.work, lambda pending, outcome: self._skipped(pending, outcome, run, offset)))
        elif policy == "stop":
            _logger.error(
                "%s: slot %d stops, as on_error says: %s failed: %s", self._prefix, lane.work.slot.number, handler, line
            )
            self._host.stop_taking(lane.work)
        else:
            delay_s = self._delay_s(lane.key, error, policy, 1)
            due_us = self._due_us(delay_s)
            self._say(lane.key, line, 1, delay_s)
            hold = Hold(lane.key, run.chunk.record(waiting.index), _cause(error), 1, line, trace, due_us)
            if await self._hold(lane, waiting, hold).outcome() is Outcome.COMMITTED and due_us is not None:
                self._lanes.set_due(lane, due_us)

    def _delay_s(self, key: str, error: Exception, policy: Retry | Literal["park"], attempts: int) -> float | None:
        """Return how long to wait before the next attempt; ``None`` to park the event, which nobody does during an outage."""
        if not isinstance(policy, Retry):
            return None
        if not isinstance(error, _OWN_FAULTS):
            self._host.failed(key, error)
        delay_s = policy.delay_s(attempts, random=self._dice)
        return policy.most_s if delay_s is None and self._host.is_paused else delay_s

    async def park(self, lane: Lane, waiting: Waiting, unreadable: Unreadable) -> None:
        """Keep a record that the code cannot read, and its key's later ones, until somebody says or the code knows it."""
        if await self._has_to_wait(lane, waiting):
            return
        self._say(lane.key, unreadable.why, 0, None)
        record = waiting.run.chunk.record(waiting.index)
        await self._hold(lane, waiting, Hold(lane.key, record, Cause.UNREADABLE, 0, unreadable.why, "", None)).outcome()

    def hold_behind(self, lane: Lane, waiting: Waiting) -> None:
        """Copy a record behind what the store holds for its key."""
        record = waiting.run.chunk.record(waiting.index)
        self._hold(lane, waiting, Hold(lane.key, record, Cause.BEHIND, 0, "", "", None))

    async def _has_to_wait(self, lane: Lane, waiting: Waiting) -> bool:
        """Wait for the earlier units of a lane; tells whether its record must not be held now.

        That is so where the slot was lost, and where an earlier record has to run again: then this one comes behind it.
        """
        while (earlier := self._committer.last_of(lane.work.slot, lane.key)) is not None:
            await earlier.outcome()
        if not lane.work.is_ours:
            return True
        if lane.must_wait(waiting):
            lane.insert(waiting)
            return True
        return False

    def _hold(self, lane: Lane, waiting: Waiting, hold: Hold) -> Pending:
        run, offset = waiting.run, waiting.run.chunk.offset(waiting.index)
        # Of its lane, so that none behind one that does not fit is held before it.
        unit = self._units.bare(lane.work.slot, lane.key, [(run.chunk.where, offset)])
        unit.holds = [hold]
        unit.room = self._room
        unit.size = len(hold.record.data) + len(hold.trace)
        lane.held += 1
        lane.uncommitted += 1

        def settled(pending: Pending, outcome: Outcome) -> None:
            lane.uncommitted -= 1
            if outcome is Outcome.COMMITTED:
                self._host.finished(run, offset)
            elif outcome is Outcome.FULL:
                self._full(lane, waiting)
            elif outcome is Outcome.DROPPED and pending.work.is_ours:  # one before it did not fit
                lane.held -= 1
                lane.insert(waiting)
                self._lanes.schedule(lane)
            else:
                self._host.lose_slot(pending.work)

        pending = Pending(unit, lane.work, settled)
        self._committer.put(pending)
        return pending

    def _full(self, lane: Lane, waiting: Waiting) -> None:
        """Keep a record unfinished that there is no room to hold, and stop its slot."""
        lane.held -= 1
        lane.insert(waiting)
        if lane.work.full_since_s is None:
            _logger.critical(
                "%s: slot %d stops, and nothing is lost: the subscription holds as much as it may (%d events or %d bytes): mend the cause, "
                "then redrive or skip what is parked (everlog parked)",
                self._prefix,
                lane.work.slot.number,
                *self._room,
            )
        self._host.fill_slot(lane.work)

    def _skipped(self, pending: Pending, outcome: Outcome, run: Run, offset: Offset) -> None:
        if outcome is Outcome.COMMITTED:
            self._tally.skipped += 1
            self._host.finished(run, offset)
        else:
            self._host.lose_slot(pending.work)

    # ---- records from the store ----

    async def run(self, me: Worker, lane: Lane) -> None:
        """Try the first held record of a key, and, where it succeeds, those behind it, in order."""
        lane.is_due = False
        lane.due_us = None
        while lane.work.is_open:
            on_their_way = lane.uncommitted  # before the look: what is committed during it may not be in the answer
            try:
                rows = await self._store.held(lane.work.slot, lane.key)
            except UNREADABLE as error:
                _logger.error(
                    "%s: key %r waits, and is looked at again in %g s: %s", self._prefix, lane.key, _UNREADABLE_S, error
                )
                self._lanes.set_due(lane, self._clock.wall_us() + round(_UNREADABLE_S * 1e6))
                return
            if rows:
                if self._is_parked(rows[0]):
                    return
                outcome = await self._try_safely(me, lane, rows[0])
                if outcome in (Outcome.CONFLICT, Outcome.DROPPED):
                    lane.conflicts += 1
                    pause_us = conflict_pause_us(lane.conflicts, self._dice)
                    if pause_us:
                        self._lanes.set_due(lane, self._clock.wall_us() + pause_us)
                        return
                    continue
                if outcome is not Outcome.COMMITTED:
                    return
                lane.conflicts = 0
                if self._host.is_paused:  # that was the probe, and somebody failed meanwhile
                    lane.is_due = True
                    return
            elif on_their_way or lane.uncommitted:
                await self._committer.drain(lane.work)
            else:
                lane.held = 0
                return

    def _is_parked(self, first: Held) -> bool:
        """Tell whether a key waits for a person. One that waits for code that knows its record goes on once that is here."""
        if first.next_attempt_us is not None or first.cause is Cause.BEHIND:
            return False
        if first.cause is not Cause.UNREADABLE:
            return True
        try:
            self._read(first.record)
        except Unhandled:
            return True
        return False

    async def _try_safely(self, me: Worker, lane: Lane, held: Held) -> Outcome | None:
        """Try one held record; where it may kill the process, as an attempt that is stored, alone in the process."""
        work = lane.work
        if (lane.is_suspect or held.cause is Cause.KILLED) and not self._careful.is_free(lambda: self._again(lane)):
            return None  # a worker that waited here would be missing to those who are waited for
        is_suspect, lane.is_suspect = lane.is_suspect, False
        try:
            if not is_suspect and held.cause is not Cause.KILLED:
                return await self._try(me, lane, held)
            async with self._careful:
                await note(self._store, self._clock, work.lease, Attempt(held=(lane.key, held.id, held.attempts)))
                outcome = await self._try(me, lane, held)
                if work.is_ours:
                    await note(self._store, self._clock, work.lease, None)
                return outcome
        except LeaseLost:
            self._host.lose_slot(work)
            return Outcome.FENCED

    async def blame(self, work: SlotWork, key: str, held_id: int, attempts: int) -> None:
        """Count the death of the slot's former owner as an attempt of a held record, if the record is still as it was then.

        Raises:
            LeaseLost: Another process owns the slot.
        """
        lane = self._lanes.lane(key, work)
        lane.is_running = True
        try:
            rows = await self._store.held(work.slot, key)
            if rows and (rows[0].id, rows[0].attempts) == (held_id, attempts) and not self._is_parked(rows[0]):
                lane.is_due = False
                await self._fail_again(lane, rows[0], HandlerKilled(self._handler_of(rows[0])))
        finally:
            lane.is_running = False
        if work.is_ours:
            await note(self._store, self._clock, work.lease, None)
        self._lanes.go_on(lane)

    def _again(self, lane: Lane) -> None:
        lane.is_due = True
        self._lanes.schedule(lane)

    def _handler_of(self, held: Held) -> str:
        branch = choose(held.record.type, self._declaration.branches)
        return branch.handler.name if isinstance(branch, Branch) else held.record.type

    async def _try(self, me: Worker, lane: Lane, held: Held) -> Outcome | None:
        """Try one held record; ``None`` where it stays, and with it those behind it."""
        tx: Tx[Any] | None = None
        try:
            branch, event = self._read(held.record)
            call = Call(
                self._units.key_prefix,
                self._log,
                branch.contract,
                event,
                stored=held.record,
                held=(lane.key, held.id, held.attempts),
            )
            call.muted = lane.work.muted(TopicPartition(held.record.topic, held.record.partition))
            tx, result = await self._host.invoke(me, branch, event, call, lane.work)
            if tx is not None and self._overlay.is_doomed(tx.reads, tx.scans):
                tx.abandon()
                return Outcome.CONFLICT
            unit = self._units.make(lane.work.slot, None, [], call, tx, result)
            unit = unit or self._units.bare(lane.work.slot, None, [])
            unit.releases = [held.id]
            outcome = await self._committed(lane, unit, tx)
        except Exception as error:
            if tx is not None:
                tx.abandon()
            return await self._fail_again(lane, held, error)
        if outcome is Outcome.COMMITTED and self._host.is_listening:
            self._host.succeeded(lane.key)
        if outcome is Outcome.REFUSED:
            return await self._fail_again(lane, held, TxRefused("an addition found no number in its row"))
        if outcome is Outcome.COMMITTED:
            self._tally.handled += 1
            lane.held = max(0, lane.held - 1)
        return outcome

    async def _fail_again(self, lane: Lane, held: Held, error: Exception) -> Outcome | None:
        """Decide what follows the failure of a held record; ``None`` where it stays."""
        is_unhandled = isinstance(error, Unhandled)
        self._tally.failed += not is_unhandled  # that was no attempt
        line, trace = describe(error)
        # A process that starts in an outage finds that out by failing: the first time here does not count.
        is_free, lane.is_taken_over = lane.is_taken_over and held.attempts > 0 and not isinstance(error, HandlerKilled), False
        attempts = held.attempts if is_free else held.attempts + 1
        policy = "park" if is_unhandled else self._declaration.delivery.policy(error)
        unit = self._units.bare(lane.work.slot, None, [])
        delay_s: float | None = None
        due_us: int | None = None
        if policy == "skip":
            _logger.warning("%s: key %r failed and is skipped, as on_error says: %s", self._prefix, lane.key, line)
            unit.releases = [held.id]
            unit.skips = [Skip(lane.key, held.record, line)]
        else:
            if isinstance(policy, Retry):
                delay_s = self._delay_s(lane.key, error, policy, attempts)
                if self._host.is_paused:
                    attempts = max(1, held.attempts)
                elif delay_s is None and isinstance(error, HandlerKilled) and held.cause is not Cause.KILLED:
                    delay_s = (
                        policy.first_s
                    )  # it failed in other ways before; nobody parks it for one kill, which may be a deploy's
            due_us = self._due_us(delay_s)
            cause = Cause.UNREADABLE if is_unhandled else _cause(error)
            unit.retried = Retried(held.id, cause, attempts, line, trace, due_us)
            self._say(lane.key, line, attempts, delay_s)
        outcome = await self._committed(lane, unit)
        is_committed = outcome is Outcome.COMMITTED
        if policy == "skip":
            self._tally.skipped += is_committed
            lane.held = max(0, lane.held - is_committed)
            return outcome if outcome in (Outcome.COMMITTED, Outcome.CONFLICT) else None
        if is_committed and due_us is not None:
            self._lanes.set_due(lane, due_us)
        if policy == "stop":
            self._host.stop_taking(lane.work)
        return None

    def _read(self, record: StoredRecord) -> tuple[Branch, object]:
        branch = choose(record.type, self._declaration.branches)
        if not isinstance(branch, Branch):
            raise Unhandled(branch.why if branch is not None else f"the code handles no {record.type} any more")
        try:
            return branch, branch.contract.decode(record.data)
        except EventRefused as error:
            raise Unhandled(str(error)) from error

    async def _committed(self, lane: Lane, unit: Unit, tx: Tx[Any] | None = None) -> Outcome:
        def settled(pending: Pending, outcome: Outcome) -> None:
            self._units.settled(pending.unit, outcome)
            if outcome is Outcome.FENCED:
                self._host.lose_slot(pending.work)

        pending = Pending(unit, lane.work, settled)
        self._committer.put(pending, None if tx is None else tx.exclusive)
        return await pending.outcome()

    def _due_us(self, delay_s: float | None) -> int | None:
        return None if delay_s is None else self._clock.wall_us() + round(delay_s * 1e6)

    def _say(self, key: str, line: str, attempts: int, delay_s: float | None) -> None:
        if delay_s is None:
            self._tally.parked += 1
            times = "1 attempt" if attempts == 1 else f"{attempts} attempts"
            _logger.error("%s: key %r is parked after %s: %s", self._prefix, key, times, line)
        else:
            self._tally.retries += 1
            _logger.warning("%s: key %r failed attempt %d, next in %.1f s: %s", self._prefix, key, attempts, delay_s, line)
