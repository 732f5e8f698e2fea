"""Workers: one handler call at a time each, and the time limit on all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from everlog.clock import Clock
from everlog.errors import HandlerCancelled, HandlerTimeout
from everlog.store import Attempt
from everlog.subscriptions.call import BatchCall, Call
from everlog.subscriptions.lane import Lane
from everlog.subscriptions.progress import SlotWork
from everlog.subscriptions.run import Run

_LOOKS_PER_LIMIT: Final = 8
IGNORED_S: Final = 5.0
"""A handler that has not ended so long after it was cancelled cannot be stopped but with its process."""


class Worker:
    """What one worker does now, for whoever looks while its handler is suspended."""

    __slots__ = ("call", "index", "is_timed_out", "key", "lane", "run", "task", "watched", "work")

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.run: Run | None = None
        """The run of the record in its handler; ``None`` while it has none, or one that has waited or was held."""
        self.index = -1
        self.key: str | None = None
        self.lane: Lane | None = None
        """Set once others may run: the lane of its key."""
        self.watched: object = None
        """What a time limit is kept on: another object for each call; ``None`` while no handler is suspended."""
        self.is_timed_out = False
        self.call: Call | BatchCall | None = None
        """What it is called for, where that is not the record at `index` of `run`."""
        self.work: SlotWork | None = None
        """Of which slot that is."""

    @property
    def attempt(self) -> tuple[SlotWork, Attempt] | None:
        """What its handler is called for now; ``None`` where none is."""
        if self.call is not None and self.work is not None:
            return self.work, self.call.attempt
        if self.run is not None and self.index >= 0:
            return self.run.work, Attempt([(self.run.chunk.where, self.run.chunk.offset(self.index))])
        return None

    @property
    def is_cancelled(self) -> bool:
        """Its handler, or it itself, was asked to end, and nobody has seen to that yet."""
        return self.is_timed_out or (self.task is not None and self.task.cancelling() > 0)

    def cancelled(self, handler: str, limit_s: float) -> HandlerTimeout | HandlerCancelled | None:
        """Return what a cancellation that came out of a handler, or was swallowed by it, means.

        ``None`` where the worker itself is to end, or where nothing was cancelled.
        """
        assert self.task is not None
        asked = self.task.cancelling()
        if self.is_timed_out:
            self.is_timed_out = False
            self.task.uncancel()
            if asked == 1:
                return HandlerTimeout(handler, limit_s)
        return HandlerCancelled(handler) if asked == 0 else None


async def keep_time_limit(
    workers: Sequence[Worker],
    limit_s: float,
    clock: Clock,
    *,
    look: Callable[[], None],
    ignored: Callable[[Worker], None],
) -> None:
    """Cancel handlers that run for longer than `limit_s`, until cancelled: one look at all of them, a few times per limit.

    Args:
        workers: All workers.
        limit_s: The limit, in seconds; a handler gets up to an eighth more.
        clock: The time.
        look: Called before each look, so that the worker that is suspended shows its call.
        ignored: Called for one whose handler has not ended `IGNORED_S` after it was cancelled. That is counted in looks: in a process that
            was stopped, or whose event loop was blocked, a handler had no time to end.
    """
    since: dict[Worker, tuple[object, float]] = {}
    every_s = min(limit_s, IGNORED_S) / _LOOKS_PER_LIMIT
    while True:
        await clock.sleep(every_s)
        look()
        now_s = clock.monotonic_s()
        for worker in workers:
            known = since.get(worker)
            if worker.watched is None:
                since.pop(worker, None)
            elif known is None or known[0] is not worker.watched:
                since[worker] = (worker.watched, now_s)
            elif now_s - known[1] >= limit_s and worker.task is not None and not worker.is_timed_out:
                worker.is_timed_out = True
                since[worker] = (worker.watched, 0.0)
                worker.task.cancel()
            elif worker.is_timed_out:
                since[worker] = (worker.watched, known[1] + every_s)
                if known[1] + every_s >= IGNORED_S:
                    ignored(worker)
