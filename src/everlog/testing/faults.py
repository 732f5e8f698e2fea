"""Faults on request: what is to happen to one app of a world, and to the log that all share."""

from __future__ import annotations

from typing import Literal, NamedTuple

from everlog.clock import Clock

Point = Literal["before_handler", "after_handler", "after_commit", "before_append", "after_append"]
"""A step between two others in the life of a unit: before its handler is called; when that has returned and nothing is stored; when it is
stored and nothing of what it publishes is sent; when that is numbered and on its way to the log; when the log has it, and the store does not
know."""
POINTS: tuple[Point, ...] = ("before_handler", "after_handler", "after_commit", "before_append", "after_append")

Fault = Literal["crash", "stall"]


class Armed(NamedTuple):
    """A fault that waits for its moment."""

    fault: Fault
    at: Point


class Outage:
    """Something that does not answer until a time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until_s = 0.0

    def begin(self, seconds: float) -> None:
        """Be down for so many seconds from now."""
        self._until_s = self._clock.monotonic_s() + seconds

    @property
    def left_s(self) -> float:
        """For how many seconds more it is down; 0 where it is up."""
        return max(0.0, self._until_s - self._clock.monotonic_s())


class Plan:
    """What is to happen to an app, over all its lives."""

    def __init__(self, clock: Clock) -> None:
        self.store = Outage(clock)
        self.repeats = 0
        """So many calls of handlers are made twice."""
        self._armed: list[Armed] = []

    def arm(self, fault: Fault, at: Point) -> None:
        """Have a fault happen when the app gets to a point next.

        Raises:
            ValueError: There is no such point.
        """
        if at not in POINTS:
            raise ValueError(f"expected at= to be one of {', '.join(POINTS)}, found {at!r}")
        self._armed.append(Armed(fault, at))

    def take(self, at: Point) -> Fault | None:
        """Return what is to happen at this point now, once."""
        for armed in self._armed:
            if armed.at == at:
                self._armed.remove(armed)
                return armed.fault
        return None

    def takes_repeat(self) -> bool:
        """Tell whether this call is to be made twice."""
        if not self.repeats:
            return False
        self.repeats -= 1
        return True

    def clear(self) -> None:
        """Let nothing more happen."""
        self._armed.clear()
        self.repeats = 0
        self.store.begin(0.0)
