"""All lanes of a subscription: which a worker should take now, and which when time has come."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from everlog.clock import Clock
from everlog.subscriptions.lane import Lane
from everlog.subscriptions.progress import SlotWork

_CONFLICT_PAUSE_US: Final = 2_000
_MOST_CONFLICTS: Final = 50


def conflict_pause_us(conflicts: int, dice: Callable[[], float]) -> int:
    """Return how long to wait after a conflict: nothing after the first, then longer, with full jitter.

    Others write the same rows, and not all should come again at once.

    Args:
        conflicts: How many there were in a row.
        dice: Gives a number from 0 up to 1.
    """
    if conflicts <= 1:
        return 0
    return round(_CONFLICT_PAUSE_US * min(conflicts, _MOST_CONFLICTS) * dice())


class Lanes:
    """The lanes of one subscription in this process.

    Args:
        clock: For the next attempts of what is held.
        scheduled: Called when a lane waits for a worker.
        most_s: The longest that an attempt may lie in the future: clocks jump.
        dice: Gives a number from 0 up to 1, for pauses.
    """

    def __init__(self, clock: Clock, scheduled: Callable[[], None], *, most_s: float, dice: Callable[[], float]) -> None:
        self._clock = clock
        self._on_scheduled = scheduled
        self._dice = dice
        self._most_us = round(most_s * 1e6)
        self.by_key: dict[str, Lane] = {}
        """Looked into for every record that is taken."""
        self.scheduled: deque[Lane] = deque()
        """Lanes that wait for a worker."""
        self._due: list[tuple[int, str, bool]] = []  # when, which key, and whether what it holds is due then
        self._due_changed = asyncio.Event()

    def lane(self, key: str, work: SlotWork) -> Lane:
        """Return the lane of a key, new if there is none."""
        lane = self.by_key.get(key)
        if lane is None or lane.work is not work:
            lane = self.by_key[key] = Lane(key, work)
        return lane

    def of(self, work: SlotWork) -> list[Lane]:
        """Return the lanes of a slot."""
        return [lane for lane in self.by_key.values() if lane.work is work]

    def schedule(self, lane: Lane) -> None:
        """Let a worker take the lane, unless one has it: that one looks before it leaves."""
        if not lane.is_running and not lane.is_scheduled:
            lane.is_scheduled = True
            self.scheduled.append(lane)
            self._on_scheduled()

    def go_on(self, lane: Lane) -> None:
        """Schedule the lane if something in it can be done now; else leave it."""
        if lane.pending or (lane.held and lane.is_due):
            self.schedule(lane)
        else:
            self.leave(lane)

    def leave(self, lane: Lane) -> None:
        """Forget the lane, if nothing is left that it would be needed for."""
        if lane.is_ordinary and self.by_key.get(lane.key) is lane:
            del self.by_key[lane.key]

    def forget(self, work: SlotWork) -> None:
        """Forget the lanes of a slot."""
        for lane in self.of(work):
            del self.by_key[lane.key]

    def set_due(self, lane: Lane, due_us: int) -> None:
        """Schedule the lane when its first held record is due."""
        pause_us = min(max(0, due_us - self._clock.wall_us()), self._most_us)
        lane.due_us = self._now_us() + pause_us
        heapq.heappush(self._due, (lane.due_us, lane.key, True))
        self._due_changed.set()

    def schedule_later(self, lane: Lane, conflicts: int) -> None:
        """Schedule the lane after a pause, because a unit of it was in conflict for the `conflicts`-th time."""
        pause_us = conflict_pause_us(conflicts, self._dice)
        if not pause_us:
            self.schedule(lane)
            return
        heapq.heappush(self._due, (self._now_us() + pause_us, lane.key, False))
        self._due_changed.set()

    def _now_us(self) -> int:
        """Return the monotonic time: no jump of the wall time delays what waits here."""
        return round(self._clock.monotonic_s() * 1e6)

    async def run(self) -> None:
        """Schedule lanes when what they hold is due, until cancelled."""
        while True:
            now_us = self._now_us()
            while self._due and self._due[0][0] <= now_us:
                due_us, key, is_due = heapq.heappop(self._due)
                lane = self.by_key.get(key)
                if lane is None or (is_due and lane.due_us != due_us):
                    continue
                if is_due:
                    lane.due_us = None
                    lane.is_due = True
                self.schedule(lane)
            self._due_changed.clear()
            waits: list[asyncio.Task[Any]] = [asyncio.create_task(self._due_changed.wait())]
            if self._due:
                until_due_s = max(0.0, (self._due[0][0] - now_us) / 1e6)
                waits.append(asyncio.create_task(self._clock.sleep(until_due_s)))
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
