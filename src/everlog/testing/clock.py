"""A clock that a test moves by hand, so that a minute of waiting takes no time."""

from __future__ import annotations

import asyncio
import heapq
from itertools import count
from typing import Final

_START_US: Final = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z: a date that is easy to read in a failed assertion


class ManualClock:
    """A `Clock` that stands still until it is told to move. For one event loop.

    Args:
        wall_us: Where the wall time starts, in microseconds since 1970-01-01 UTC.
        monotonic_s: Where the monotonic time starts, in seconds.
    """

    def __init__(self, *, wall_us: int = _START_US, monotonic_s: float = 1_000.0) -> None:
        self._wall_us = wall_us
        self._monotonic_s = monotonic_s
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._turn = count()

    def wall_us(self) -> int:
        return self._wall_us

    def monotonic_s(self) -> float:
        return self._monotonic_s

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock was advanced by `seconds`; 0 or less lets other tasks run once."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        awake = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic_s + seconds, next(self._turn), awake))
        await awake

    def advance(self, seconds: float) -> None:
        """Move both times forward. Who sleeps until then or before is woken, in the order of their times.

        They run when the caller next awaits; one that then sleeps again counts from the new time.
        """
        if seconds < 0:
            raise ValueError(f"the monotonic time cannot go back, found {seconds} s: `jump` moves the wall time alone")
        self._wall_us += round(seconds * 1_000_000)
        self._monotonic_s += seconds
        while self._sleepers and self._sleepers[0][0] <= self._monotonic_s:
            _, _, awake = heapq.heappop(self._sleepers)
            if not awake.done():
                awake.set_result(None)

    def jump(self, seconds: float) -> None:
        """Move the wall time alone, forward or back, as when somebody sets the machine's clock. Nobody is woken."""
        self._wall_us += round(seconds * 1_000_000)
