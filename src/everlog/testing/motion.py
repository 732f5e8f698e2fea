"""What is under way in a world: how a test knows that nothing happens any more, without a look at a clock."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

_TURNS: Final = 60
"""So many turns of the event loop without a step of anybody mean that all wait: from one step to the next it takes a dozen."""


class Motion:
    """Counts the steps of a world's apps, and what they have begun and not ended. For one event loop.

    Args:
        lag_s: For how many seconds of real time a step can be on its way unseen: between processes' files, not in memory.
    """

    def __init__(self, lag_s: float) -> None:
        self._lag_s = lag_s
        self._steps = 0
        self._work = 0
        self._calls = 0
        self._changed = asyncio.Event()

    @property
    def has_calls(self) -> bool:
        """A handler runs."""
        return self._calls > 0

    def step(self) -> None:
        """Note that somebody did something."""
        self._steps += 1
        self._changed.set()

    @contextmanager
    def working(self) -> Generator[None]:
        """Note that the platform does something, which ends by itself."""
        self._work += 1
        self.step()
        try:
            yield
        finally:
            self._work -= 1
            self.step()

    @contextmanager
    def calling(self) -> Generator[None]:
        """Note that a handler runs, which may wait for anything."""
        self._calls += 1
        self.step()
        try:
            yield
        finally:
            self._calls -= 1
            self.step()

    @contextmanager
    def stopped(self) -> Generator[None]:
        """Note that what was begun is held on purpose: nobody is to wait for it."""
        self._calls -= 1
        self.step()
        try:
            yield
        finally:
            self._calls += 1
            self.step()

    async def still(self, *, patience_s: float | None = None) -> None:
        """Return when nothing happens any more until time moves.

        Args:
            patience_s: How long to wait for handlers that wait for something, in seconds of real time; ``None``: until they have ended.
        """
        while True:
            await self._quiet()
            if self._work == 0 and (self._calls <= 0 or patience_s == 0):
                if not self._lag_s or not await self._changes_within(self._lag_s):
                    return
            elif self._work or patience_s is None:
                await self._changes_within(None)
            elif not await self._changes_within(patience_s):
                return

    async def _quiet(self) -> None:
        """Give everybody turns until nobody uses them."""
        turns = 0
        seen = self._steps
        while turns < _TURNS:
            await asyncio.sleep(0)
            turns += 1
            if self._steps != seen:
                turns, seen = 0, self._steps
        self._changed.clear()

    async def _changes_within(self, seconds: float | None) -> bool:
        """Wait for the next step; tells whether it came within so many seconds of real time."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True
