"""Lanes: the events of one key, in order. Only keys with something out of the ordinary have one."""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from everlog.subscriptions.declaration import Branch
from everlog.subscriptions.progress import SlotWork
from everlog.subscriptions.run import Run, Unreadable


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


class Lane:
    """A key with a handler that is suspended, with records waiting for it, or with held records in the store."""

    __slots__ = (
        "due_us",
        "held",
        "is_due",
        "is_running",
        "is_scheduled",
        "is_stale",
        "key",
        "pending",
        "reruns",
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
        self.is_stale = False
        """An earlier record of it has to run again, so what its handler does now must be run again behind that."""
        self.reruns = 0
        """How many at the head of `pending` have to run again."""
        self.pending: deque[Waiting] = deque()
        """Records to handle, in order, before any later one of the key."""
        self.held = 0
        """Records that the store holds for it, or that are on their way there. Above 0, the key is blocked or parked."""
        self.uncommitted = 0
        """Of these, those on their way."""
        self.due_us: int | None = None
        """Wall time of the next attempt; ``None`` while none is waited for: the key is parked, or runs."""
        self.is_due = False
        """The first held record should be tried now."""

    def rerun(self, waiting: Waiting) -> None:
        """Put a record behind those that have to run again, and before all others."""
        self.pending.insert(self.reruns, waiting)
        self.reruns += 1

    def pop(self) -> Waiting:
        """Take the first record that waits."""
        self.reruns = max(0, self.reruns - 1)
        return self.pending.popleft()

    @property
    def is_ordinary(self) -> bool:
        """Nothing is left that the lane would be needed for."""
        return not (self.is_running or self.is_scheduled or self.pending or self.held)
