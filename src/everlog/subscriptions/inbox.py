"""The inbox of a slot that is worked on group by group: its runs, in the order in which they were read, given out record by record."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from everlog.subscriptions.lane import Waiting

if TYPE_CHECKING:
    from everlog.subscriptions.run import Run


class Inbox:
    """Records of one slot, each given out once.

    Args:
        begin: Called before the first record of a run is given out.
        end: Called behind the last one.
    """

    def __init__(self, begin: Callable[[Run], None], end: Callable[[Run], None]) -> None:
        self._begin = begin
        self._end = end
        self._runs: deque[Run] = deque()
        self._current: Run | None = None
        self._returned: deque[Waiting] = deque()
        self._changed = asyncio.Event()
        self.is_closed = False
        """Nothing is given out any more."""

    @property
    def size(self) -> int:
        """Bytes that wait here."""
        return sum([run.size for run in self._runs])

    @property
    def is_empty(self) -> bool:
        """Nothing waits here."""
        return self._current is None and not self._runs and not self._returned

    @property
    def has_returned(self) -> bool:
        """Something that was given out has come back and waits here."""
        return bool(self._returned)

    def put(self, run: Run) -> None:
        """Add a run that was read."""
        self._runs.append(run)
        self._changed.set()

    def take_alike(self, most: int) -> list[Waiting]:
        """Return the next records, at most so many, where all have one handler and were decoded as one piece.

        Empty where there are none, and where each has to be looked at: then `take` says what comes next.
        """
        if self._returned or self._current is None:
            return []
        run, items = self._current, self._current.items
        branch = run.branch
        if branch is None:
            return []
        taken = [Waiting(run, index, event, branch) for index, _, event, _ in islice(items, most)]
        run.partition.take_all(run.chunk.offsets_at([waiting.index for waiting in taken]), run)
        return taken

    def take(self) -> Waiting | None:
        """Return the next record; ``None`` where there is none now."""
        if self._returned:
            return self._returned.popleft()
        while True:
            if self._current is None:
                if not self._runs:
                    return None
                self._current = self._runs.popleft()
                self._begin(self._current)
            run = self._current
            for index, _, event, branch in run.items:
                run.partition.take(run.chunk.offset(index), run)
                return Waiting(run, index, event, branch)
            self._current = None
            self._end(run)

    def give_back(self, waiting: Sequence[Waiting]) -> None:
        """Put records that were given out and not begun in front again, in their order."""
        self._returned.extendleft(reversed(waiting))

    async def wait(self) -> None:
        """Wait for something new, or for the end."""
        if self.is_closed or self._runs:
            return
        self._changed.clear()
        await self._changed.wait()

    def wake(self) -> None:
        """Let whoever waits look again."""
        self._changed.set()

    def close(self) -> Sequence[Run]:
        """Give out nothing more; return the runs that are left, the one that was begun first."""
        self.is_closed = True
        self._changed.set()
        runs = [*([] if self._current is None else [self._current]), *self._runs]
        self._current = None
        self._runs.clear()
        return runs
