"""Whether what runs is ready for work, and whether it should be started anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

from everlog.clock import Clock

_TURN_EVERY_S: Final = 0.5


class Health(NamedTuple):
    """What `/readyz` and `/healthz` ask, from any thread. Each answers with what is wrong, and with ``None`` where nothing is."""

    not_ready: Callable[[], str | None]
    not_well: Callable[[], str | None]


class Vitals:
    """The health of a process that runs apps itself.

    Args:
        apps: How many there are.
        limit_s: So long a handler may keep the event loop, in seconds.
        clock: The time.
    """

    def __init__(self, apps: int, *, limit_s: float, clock: Clock) -> None:
        self._to_come = apps
        self._is_stopping = False
        self._limit_s = limit_s
        self._clock = clock
        self._turned_s = clock.monotonic_s()
        self.health: Final = Health(self._not_ready, self._not_well)

    def ready(self) -> None:
        """Note that one more app is at work."""
        self._to_come -= 1

    def stopping(self) -> None:
        """Note that all stop."""
        self._is_stopping = True

    async def turn(self) -> None:
        """Show that the event loop turns, until cancelled."""
        while True:
            self._turned_s = self._clock.monotonic_s()
            await asyncio.sleep(_TURN_EVERY_S)

    def _not_ready(self) -> str | None:
        if self._is_stopping:
            return "stopping"
        if self._to_come > 0:
            return f"{self._to_come} app{' is' if self._to_come == 1 else 's are'} not at work yet"
        return self._not_well()

    def _not_well(self) -> str | None:
        silent_s = self._clock.monotonic_s() - self._turned_s
        return f"the event loop has not turned for {silent_s:.0f} s" if silent_s > self._limit_s else None
