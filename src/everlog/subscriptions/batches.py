"""Batches: the events of one call of a handler that takes several, as one unit; and which of them is bad where it fails."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, Protocol, cast

from everlog.errors import PoisonAt, TxRefused
from everlog.position import Offset
from everlog.store import Outcome
from everlog.subscriptions.call import BatchCall, Call
from everlog.subscriptions.committer import Pending
from everlog.subscriptions.declaration import Branch
from everlog.subscriptions.lane import Waiting
from everlog.subscriptions.lanes import conflict_pause_us
from everlog.subscriptions.parts import Parts
from everlog.subscriptions.progress import SlotWork
from everlog.subscriptions.run import Run, Unreadable
from everlog.subscriptions.worker import Worker


class Host(Protocol):
    """What runs the handlers."""

    def defer(self, waiting: Waiting) -> None:
        """Let a record be handled in its lane."""
        ...

    def call(self, branch: Branch, event: object, run: Run, index: int) -> Call:
        """Return the call of a handler for a record."""
        ...

    def finished_all(self, run: Run, offsets: Sequence[Offset]) -> None:
        """Note that records of a run are finished for good."""
        ...

    def lose_slot(self, work: SlotWork) -> None:
        """Note that another process owns the slot."""
        ...

    def is_closing(self, work: SlotWork) -> bool:
        """Tell whether no more of the slot is to be begun."""
        ...

    @property
    def is_paused(self) -> bool:
        """The subscription is paused: one event is tried now and then."""
        ...

    def succeeded(self, key: str) -> None:
        """Note that an event of a key was handled."""
        ...

    @property
    def is_listening(self) -> bool:
        """Successes count."""
        ...


class Batches:
    """Runs the batches of one subscription, each in a worker.

    Args:
        host: Runs handlers.
        parts: What the subscription is made of.
    """

    def __init__(self, host: Host, parts: Parts) -> None:
        self._host = host
        self._calls = parts.calls
        self._lanes = parts.lanes
        self._holding = parts.holding
        self._units = parts.units
        self._committer = parts.around.committer
        self._tally = parts.tally
        self._clock = parts.around.clock
        self._dice = parts.around.dice

    async def run(self, me: Worker, work: SlotWork, group: Sequence[Waiting]) -> None:
        """Run a batch as one unit; one that fails is halved until the bad event is alone, whose key is then blocked."""
        is_probe = self._host.is_paused and len(group) == 1  # a larger one was taken just before the pause
        segments: list[tuple[Sequence[Waiting], Exception | None]] = [(part, None) for part in reversed(_parts(group))]
        conflicts = 0
        while segments:
            if self._host.is_closing(work):  # what is left is stored as unfinished
                return
            if self._host.is_paused and not is_probe:
                assert work.inbox is not None
                work.inbox.give_back([waiting for segment, _ in reversed(segments) for waiting in segment])
                return
            segment, error = segments.pop()
            if self._lanes.by_key:
                segment = [waiting for waiting in segment if not self._is_behind(waiting, work)]
            if not segment:
                continue
            if error is None:
                outcome, error = await self._try(me, work, segment)
                if outcome is Outcome.COMMITTED:
                    conflicts = 0
                    continue
                if outcome in (Outcome.CONFLICT, Outcome.DROPPED):
                    conflicts += 1
                    await self._clock.sleep(conflict_pause_us(conflicts, self._dice) / 1e6)
                    segments.append((segment, None))
                    continue
                if error is None or not work.is_ours:  # then the lanes of its keys are another owner's
                    return
            at = _poison(error, len(segment))
            if len(segment) == 1:
                await self._fail(segment[0], work, error)
            elif at is not None:
                segments.append((segment[at + 1 :], None))
                segments.append(([segment[at]], error))
                segments.append((segment[:at], None))
            else:
                middle = len(segment) // 2
                segments.append((segment[middle:], None))
                segments.append((segment[:middle], None))

    async def _try(self, me: Worker, work: SlotWork, segment: Sequence[Waiting]) -> tuple[Outcome | None, Exception | None]:
        """Call the handler for a segment and commit what it did; returns the outcome, or why the handler failed."""
        branch = cast("Branch", segment[0].branch)
        call = BatchCall(lambda: [self._host.call(cast("Branch", one.branch), one.event, one.run, one.index) for one in segment])
        tx: Any = None
        try:
            tx, result = await self._calls.invoke(me, branch, [one.event for one in segment], call, work)
            if not work.is_ours:
                return None, None
            unit = None
            if result is not None or (tx is not None and tx.has_effects):
                finishes = [(one.run.chunk.where, one.run.chunk.offset(one.index)) for one in segment]
                unit = self._units.make(work.slot, None, finishes, call, tx, result)
            if unit is None:
                self._done(segment)
                self._committer.touch(work, urgent=False)
                outcome = Outcome.COMMITTED
            else:
                pending = Pending(unit, work, lambda pending, outcome: self._settled(pending, outcome, segment))
                self._committer.put(pending, None if tx is None else tx.exclusive)
                outcome = await pending.outcome()
        except Exception as error:
            return None, error
        finally:
            if tx is not None:
                tx.abandon()
        if outcome is Outcome.FENCED:
            self._host.lose_slot(work)
            return None, None
        if outcome is Outcome.REFUSED:
            return None, TxRefused("an addition found no number in its row")
        return outcome, None

    def _settled(self, pending: Pending, outcome: Outcome, segment: Sequence[Waiting]) -> None:
        """Called by the committer once it is known what became of a batch, before it stores the slot's progress again."""
        self._units.settled(pending.unit, outcome)
        if outcome is Outcome.COMMITTED:
            self._done(segment)

    def _done(self, segment: Sequence[Waiting]) -> None:
        self._tally.handled += len(segment)
        for run, waitings in groupby(segment, key=_run):
            self._host.finished_all(run, run.chunk.offsets_at([one.index for one in waitings]))
        for one in segment:
            if not self._host.is_listening:
                break
            self._host.succeeded(one.lane_key)

    def _is_behind(self, waiting: Waiting, work: SlotWork) -> bool:
        """Copy a record behind what its key holds by now; tells whether there was something."""
        lane = self._lanes.by_key.get(waiting.lane_key)
        if lane is None or lane.work is not work:
            return False
        self._host.defer(waiting)
        return True

    async def _fail(self, waiting: Waiting, work: SlotWork, error: Exception) -> None:
        """Block the key of an event that fails alone."""
        cause = error.__cause__ if isinstance(error, PoisonAt) else None
        lane = self._lanes.lane(waiting.lane_key, work)
        lane.is_running = True
        try:
            await self._holding.fail(lane, waiting, cause if isinstance(cause, Exception) else error)
        finally:
            lane.is_running = False
            self._lanes.go_on(lane)


_run: Final = attrgetter("run")


def _parts(group: Sequence[Waiting]) -> Sequence[Sequence[Waiting]]:
    """Return a batch in parts, each of which a replay publishes nothing of, or all."""
    if all(waiting.run.partition.muted is None for waiting in group):  # as nearly always
        return [group]
    return [list(part) for _, part in groupby(group, key=_is_muted)]


def _is_muted(waiting: Waiting) -> bool:
    muted = waiting.run.partition.muted
    if muted is None or isinstance(waiting.branch, Unreadable):
        return False
    return muted.has(waiting.run.chunk.offset(waiting.index), waiting.branch.contract.name)


def _poison(error: Exception, count: int) -> int | None:
    """Return which of `count` events the handler calls the bad one; ``None`` where it does not say, or names none of them."""
    index: object = error.index if isinstance(error, PoisonAt) else None
    return index if isinstance(index, int) and 0 <= index < count else None
