"""Keeps one worker at work: starts it, starts it again when it ends, and waits longer each time that it ends soon."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from everlog.cli.crew import Crew
from everlog.cli.exits import REFUSED, USAGE
from everlog.cli.worker import Work, Worker, end_in_words
from everlog.observe.meters import Snapshot

STEADY_S: Final = 60.0
"""A worker that has lived for so long begins anew: its next end is its first."""
CRASHING_ENDS: Final = 5
"""A worker that has ended so often in a row will hardly stay the next time: whoever watches over the supervisor is told."""

_FIRST_S: Final = 0.5
_MOST_S: Final = 30.0

_logger: Final = logging.getLogger("everlog")


def delay_s(ends: int) -> float:
    """Return the seconds to wait before the next start.

    Args:
        ends: How often the worker has ended in a row; 1 for the first.
    """
    return min(_MOST_S, _FIRST_S * 2.0 ** min(ends - 1, 10))


def ends_in_a_row(before: int, *, lived_s: float) -> int:
    """Return how often a worker has ended in a row, with the end of one that lived for so long."""
    return 1 if lived_s >= STEADY_S else before + 1


def is_hopeless(code: int, *, has_run: bool, awaits_changes: bool) -> bool:
    """Return whether starting again cannot help.

    Args:
        code: How the worker has ended.
        has_run: It, or one before it, was running. Then others may run still, and what is refused now may be mended.
        awaits_changes: Its code will be changed, and it is started again then.
    """
    return not has_run and (code in (USAGE, REFUSED) or (awaits_changes and code > 0))


class Keeper:
    """Keeps one worker at work.

    Args:
        number: The worker's number, from 1 on.
        work: What it does.
        introduces: It prints what its apps work with, until they have run once.
        awaits_changes: A start that fails waits for a change of the code.
        on_hopeless: Called with the exit code of a worker that cannot be started. It is not started again.
        crew: Where the worker's numbers are kept; ``None``: nobody asks for them.

    Attributes:
        running: Set while its apps are running.
    """

    def __init__(
        self,
        number: int,
        work: Work,
        *,
        introduces: bool,
        awaits_changes: bool,
        on_hopeless: Callable[[int], None],
        crew: Crew | None = None,
    ) -> None:
        self.running = asyncio.Event()
        self._number = number
        self._work = work
        self._introduces = introduces
        self._awaits_changes = awaits_changes
        self._on_hopeless = on_hopeless
        self._crew = crew
        self._began_s = 0.0
        self._worker: Worker | None = None
        self._has_run = False
        self._is_over = False
        self._ends = 0
        self._is_replacing = False
        self._hurry = asyncio.Event()

    async def keep(self) -> None:
        """Keep the worker at work until `stop`, or until starting it cannot help."""
        now_s = asyncio.get_running_loop().time
        while not self._is_over:
            self._began_s = now_s()
            code, end = await self._run()
            await self._go_on(code, end, lived_s=now_s() - self._began_s)

    async def _go_on(self, code: int | None, end: str, *, lived_s: float) -> None:
        """Decide what follows an end of the worker, and wait as long as that takes."""
        if self._is_over or self._is_replacing:  # it was asked to end
            _logger.info("worker %d %s", self._number, end)
            self._is_replacing, self._ends = False, 0
        elif code is not None and is_hopeless(code, has_run=self._has_run, awaits_changes=self._awaits_changes):
            _logger.error("worker %d %s before it was running", self._number, end)
            self._is_over = True
            self._on_hopeless(code)
        else:
            self._ends = ends_in_a_row(self._ends, lived_s=lived_s)
            _logger.warning("worker %d %s: starting again in %g s", self._number, end, delay_s(self._ends))
            await self._pause(delay_s(self._ends))

    def not_ready(self) -> str | None:
        """Return why the worker is not at work; ``None`` where it is. From any thread."""
        worker = self._worker
        if worker is None or not self.running.is_set():
            return f"worker {self._number} is not running"
        return f"worker {self._number} gives no sign of life" if worker.is_silent else None

    def not_well(self) -> str | None:
        """Return what is wrong where the worker ends again and again; ``None`` where it does not, or no more. From any thread."""
        if self._ends < CRASHING_ENDS or time.monotonic() - self._began_s >= STEADY_S:
            return None
        return f"worker {self._number} has ended {self._ends} times in a row"

    async def replace(self) -> None:
        """Stop the worker in order, and wait until the next one is running, however often that has to be tried."""
        self.running.clear()
        if self._worker is not None:
            self._is_replacing = True
            self._worker.stop()
        self._hurry.set()
        await self.running.wait()

    def stop(self) -> None:
        """Stop the worker in order. `keep` returns when it has ended."""
        self._is_over = True
        self._hurry.set()
        if self._worker is not None:
            self._worker.stop()

    def kill(self) -> None:
        """End the worker at once."""
        if self._worker is not None:
            self._worker.kill()

    async def _run(self) -> tuple[int | None, str]:
        """Start the worker, and return how it has ended, in words too."""
        try:
            worker = Worker(
                self._number,
                self._work,
                introduces=self._introduces and not self._has_run,
                on_running=self._on_running,
                on_numbers=self._on_numbers if self._crew is not None else None,
            )
        except OSError as error:
            return None, f"cannot be started ({error})"
        self._worker = worker
        if self._crew is not None:
            self._crew.started(self._number)
        _logger.info("worker %d is started, pid %d", self._number, worker.pid)
        code = await worker.ended()
        if self._crew is not None:
            self._crew.ended(self._number)
        self._worker = None
        self.running.clear()
        return code, end_in_words(code)

    def _on_numbers(self, snapshot: Snapshot) -> None:
        if self._crew is not None:
            self._crew.heard(self._number, snapshot)

    def _on_running(self) -> None:
        self._has_run = True
        if self._crew is not None:
            self._crew.running(self._number)
        if not self._is_replacing:
            _logger.info("worker %d is running", self._number)
            self.running.set()

    async def _pause(self, seconds: float) -> None:
        self._hurry.clear()
        if not self._is_over:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._hurry.wait()
