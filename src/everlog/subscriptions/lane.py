"""Lanes: the events of one key, in order. Only keys with something out of the ordinary have one."""

from __future__ import annotations

import bisect
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from everlog.subscriptions.declaration import Branch
from everlog.subscriptions.run import Run, Unreadable, lane_of

if TYPE_CHECKING:
    from everlog.subscriptions.progress import SlotWork


class Waiting(msgspec.Struct, frozen=True):
    """A record that was taken from its run and waits for its lane."""

    run: Run
    index: int
    event: Any
    branch: Branch | Unreadable
    conflicts: int = 0
    """How often its unit was in conflict."""
    error: Exception | None = None
    """Why its handler failed, where that is known before it runs: its unit was refused."""

    @property
    def lane_key(self) -> str:
        """The key of its lane."""
        return lane_of(self.run.chunk.keys[self.index], self.run.chunk, self.index)

    @property
    def arrival(self) -> tuple[int, int]:
        """Its place in the order in which records were taken."""
        return self.run.number, self.index


def _arrival(waiting: Waiting) -> tuple[int, int]:
    return waiting.arrival


class Lane:
    """A key with a handler that is suspended, with records waiting for it, or with held records in the store."""

    __slots__ = (
        "conflicts",
        "due_us",
        "held",
        "is_due",
        "is_probe",
        "is_running",
        "is_scheduled",
        "is_suspect",
        "is_taken_over",
        "key",
        "pending",
        "uncommitted",
        "work",
    )

    def __init__(self, key: str, work: SlotWork) -> None:
        self.key = key
        self.work = work
        self.is_running = False
        """A worker has it: its handler runs, or is about to."""
        self.is_scheduled = False
        """It stands in the line of lanes that a worker should take."""
        self.pending: deque[Waiting] = deque()
        """Records to handle, in order, before any later one of the key."""
        self.held = 0
        """Records that the store holds for it, or that are on their way there. Above 0, the key is blocked or parked."""
        self.uncommitted = 0
        """Of these, those on their way."""
        self.due_us: int | None = None
        """Wall time of the next attempt; ``None`` while none is waited for: the key is parked, or runs."""
        self.conflicts = 0
        """How often in a row the unit of its first held record was in conflict."""
        self.is_due = False
        """The first held record should be tried now."""
        self.is_suspect = False
        """Its first held record may have been in its handler when the slot's former owner died."""
        self.is_taken_over = False
        """Its first held record was not tried here yet: whether what it needs is down, this process does not know."""
        self.is_probe = False
        """It takes one step though the subscription is paused."""

    def insert(self, waiting: Waiting) -> None:
        """Put a record into the order in which the records of the key were taken."""
        bisect.insort(self.pending, waiting, key=_arrival)

    def must_wait(self, waiting: Waiting) -> bool:
        """Tell whether an earlier record of the key has to run again first."""
        return bool(self.pending) and self.pending[0].arrival < waiting.arrival

    @property
    def is_ordinary(self) -> bool:
        """Nothing is left that the lane would be needed for."""
        return not (self.is_running or self.is_scheduled or self.pending or self.held)
