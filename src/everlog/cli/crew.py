"""What a supervisor can show of its workers: who is up, and the sums of what they count. It outlives each of them."""

from __future__ import annotations

import threading

from everlog.observe import meters as families
from everlog.observe.meters import Meters, Snapshot, lasting, merged


class Crew:
    """The numbers of all workers, by number. Written on the event loop, and read from any thread."""

    def __init__(self) -> None:
        self._own = Meters()
        self._newest: dict[int, Snapshot] = {}
        self._ended = Snapshot([], [])
        self._lock = threading.Lock()  # for what moves from one place to another, and is in one of them

    def started(self, number: int) -> None:
        """Note that a worker was started."""
        self._own.add(families.WORKER_STARTS, 1, str(number))
        self._own.set(families.WORKER_UP, 0, str(number))

    def running(self, number: int) -> None:
        """Note that its apps are running."""
        self._own.set(families.WORKER_UP, 1, str(number))

    def heard(self, number: int, snapshot: Snapshot) -> None:
        """Take what a worker counts, instead of what it said before."""
        with self._lock:
            self._newest[number] = snapshot

    def ended(self, number: int) -> None:
        """Keep what a worker has counted: a sum that went back would look as if all of it had been counted anew."""
        self._own.set(families.WORKER_UP, 0, str(number))
        with self._lock:
            last = self._newest.pop(number, None)
            if last is not None:
                self._ended = merged([self._ended, lasting(last)])

    def snapshot(self) -> Snapshot:
        """Return the numbers of all."""
        with self._lock:
            newest = [self._ended, *self._newest.values()]
        return merged([self._own.snapshot(), *newest])
