"""Time, as a parameter: everything that waits or stamps is given a `Clock`, so that a test can move it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
AHEAD_US: Final = 60_000_000
"""A log whose time is further ahead than this has, or had, a machine with a wrong clock among its writers."""


class Clock(Protocol):
    """The two times of a machine, and waiting."""

    def wall_us(self) -> int:
        """Return the wall time in microseconds since 1970-01-01 UTC; it can jump."""
        ...

    def monotonic_s(self) -> float:
        """Return seconds since the machine's boot (CLOCK_MONOTONIC): the same number in each process of one boot."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds` of the monotonic time."""
        ...


class Steady:
    """A wall time that no jump takes forward: for what cannot be undone, like deleting what is old.

    It goes on from where the wall time stood when this was made, as the monotonic time does, and is never ahead of the wall time; a minute is
    forgiven. A machine that slept is behind until the process starts anew.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wall_us = clock.wall_us()
        self._monotonic_s = clock.monotonic_s()

    def wall_us(self) -> int:
        """Return it, in microseconds since 1970-01-01 UTC."""
        passed_us = round((self._clock.monotonic_s() - self._monotonic_s) * 1e6)
        return min(self._clock.wall_us(), self._wall_us + passed_us + AHEAD_US)


class SystemClock:
    """The machine's own clock."""

    def wall_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic_s(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        import asyncio  # it costs 40 ms, and whoever only declares an app does not need it

        await asyncio.sleep(seconds)


def to_datetime(time_us: int) -> datetime:
    """Return the moment as an aware datetime in UTC."""
    return _EPOCH + timedelta(microseconds=time_us)


def to_us(moment: datetime) -> int:
    """Return microseconds since 1970-01-01 UTC.

    Raises:
        ValueError: `moment` has no time zone, so it names no moment.
    """
    if moment.tzinfo is None:
        raise ValueError(f"expected a datetime with a time zone, found {moment!r}: add tzinfo=UTC if that is what it means")
    return (moment - _EPOCH) // timedelta(microseconds=1)
