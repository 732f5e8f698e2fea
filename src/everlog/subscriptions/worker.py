"""Workers: one handler call at a time each, and the time limit on all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from everlog.clock import Clock
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

    def was_time_limit(self) -> bool:
        """Tell whether a cancellation was the time limit's, and take it back if so."""
        if not self.is_timed_out or self.task is None:
            return False
        self.is_timed_out = False
        self.task.uncancel()
        return True


async def keep_time_limit(workers: Sequence[Worker], limit_s: float, clock: Clock, look: Callable[[], None]) -> None:
    """Cancel handlers that run for longer than `limit_s`, until cancelled: one look at all of them, a few times per limit.

    Args:
        workers: All workers.
        limit_s: The limit, in seconds; it is kept to within an eighth.
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
            elif now_s - known[1] >= limit_s * (1 - 1 / _LOOKS_PER_LIMIT) and worker.task is not None and not worker.is_timed_out:
                worker.is_timed_out = True
                worker.task.cancel()
