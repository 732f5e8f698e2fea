"""Workers: one handler call at a time each, and the time limit on all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from everlog.clock import Clock
from everlog.errors import HandlerCancelled, HandlerTimeout
from everlog.subscriptions.lane import Lane
from everlog.subscriptions.run import Run

_LOOKS_PER_LIMIT: Final = 8


class Worker:
    """What one worker does now, for whoever looks while its handler is suspended."""

    __slots__ = ("index", "is_timed_out", "key", "lane", "run", "task", "watched")

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


async def keep_time_limit(workers: Sequence[Worker], limit_s: float, clock: Clock, look: Callable[[], None]) -> None:
    """Cancel handlers that run for longer than `limit_s`, until cancelled: one look at all of them, a few times per limit.

    Args:
        workers: All workers.
        limit_s: The limit, in seconds; a handler gets up to an eighth more.
        clock: The time.
        look: Called before each look, so that the worker that is suspended shows its call.
    """
    since: dict[Worker, tuple[object, float]] = {}
    while True:
        await clock.sleep(limit_s / _LOOKS_PER_LIMIT)
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
                worker.task.cancel()
