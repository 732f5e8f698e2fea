"""One start of an app in a world, as a process would be: it can be killed, or held for a while, at any step."""

from __future__ import annotations

import asyncio

from everlog.testing.faults import Fault, Plan, Point
from everlog.testing.motion import Motion


class Life:
    """What an app does to the log and the store passes here.

    Args:
        plan: What is to happen to the app.
        motion: What is under way in the world.
    """

    def __init__(self, plan: Plan, motion: Motion) -> None:
        self.plan = plan
        self.motion = motion
        self.is_dead = False
        """Killed: whatever it still does reaches nothing."""
        self.fell: asyncio.Future[Fault] = asyncio.get_running_loop().create_future()
        """Ends with what happened to it."""
        self._moves = asyncio.Event()
        self._moves.set()

    def fall(self, fault: Fault) -> None:
        """Kill it, or hold it where it is."""
        if self.is_dead or self.fell.done():
            return
        self.is_dead = fault == "crash"
        self._moves.clear()
        self.fell.set_result(fault)
        self.motion.step()

    def wake(self) -> None:
        """Let it go on; one that was killed ends."""
        self._moves.set()

    async def go_on(self) -> None:
        """Return when it may go on.

        Raises:
            CancelledError: It was killed.
        """
        if not self._moves.is_set():
            await self._moves.wait()
        if self.is_dead:
            raise asyncio.CancelledError

    async def reach(self, point: Point, *, in_handler: bool = False) -> None:
        """Come to a step, and perhaps to an end."""
        fault = self.plan.take(point)
        if fault is not None:
            self.fall(fault)
        if self._moves.is_set() and not self.is_dead:
            return
        if in_handler:
            with self.motion.stopped():
                await self.go_on()
        else:
            await self.go_on()
