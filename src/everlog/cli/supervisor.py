"""`everlog run --workers` and `--reload`: a process that keeps others at work. It imports no app, and opens neither log nor store."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from everlog.cli.crew import Crew
from everlog.cli.exits import FAILED
from everlog.cli.keeper import Keeper
from everlog.cli.notify import ServiceManager
from everlog.cli.reload import changes
from everlog.cli.terminal import counted
from everlog.cli.worker import Work
from everlog.observe.health import Health

_logger: Final = logging.getLogger("everlog")


class Supervisor:
    """Keeps workers at work until a signal ends it, or until they cannot be started.

    The first worker starts alone, and the others when it is running: what is refused is refused once, and what the first start makes is there for
    the others. Made on the event loop.

    Args:
        work: What each worker does.
        workers: How many there are.
        watched: All of them are started anew when a Python file in this folder changes, and one that cannot be started waits for that.
            ``None`` watches nothing.
        manager: Who is told that the workers are running, and that they stop.
        crew: Where the workers' numbers are kept; ``None``: nobody asks for them.
    """

    def __init__(
        self, work: Work, workers: int, *, watched: Path | None, manager: ServiceManager, crew: Crew | None = None
    ) -> None:
        self._work = work
        self._workers = workers
        self._watched = watched
        self._manager = manager
        self._crew = crew
        self._keepers: list[Keeper] = []
        self._is_introduced = False
        self._is_told_to_stop = False
        self._code: int | None = None
        self._end = asyncio.Event()
        """These workers stop: for good if there is an exit code."""
        self._roll = asyncio.Event()
        self.health: Final = Health(self._not_ready, self._not_well)
        """Whether all workers are at work, and none of them ends again and again."""

    async def run(self) -> int:
        """Keep the workers at work, and return the exit code when they have ended.

        Returns:
            0 after SIGTERM or SIGINT; 128 and the number of a second signal, which ends the workers at once; or the code of a worker that cannot
            be started.
        """
        with self._signals():
            async with asyncio.TaskGroup() as tasks:
                beside = [tasks.create_task(self._manager.keep_watchdog()), tasks.create_task(self._watch())]
                while self._code is None:
                    await self._keep_at_work()
                for task in beside:
                    task.cancel()
        return self._code

    async def _keep_at_work(self) -> None:
        """Keep one set of workers at work until they are to end, and stop them in order."""
        self._end.clear()
        self._roll.clear()
        self._keepers = [
            Keeper(
                number,
                self._work,
                introduces=number == 1 and not self._is_introduced,
                awaits_changes=self._watched is not None,
                on_hopeless=self._cannot_start,
                crew=self._crew,
            )
            for number in range(1, self._workers + 1)
        ]
        async with asyncio.TaskGroup() as tasks:
            lead = tasks.create_task(self._lead(tasks))
            await self._end.wait()
            lead.cancel()
            for keeper in self._keepers:
                keeper.stop()

    async def _lead(self, tasks: asyncio.TaskGroup) -> None:
        """Start the workers, and replace them one after the other as often as SIGHUP asks for it."""
        first, *others = self._keepers
        tasks.create_task(first.keep())
        await first.running.wait()
        self._is_introduced = True
        for keeper in others:
            tasks.create_task(keeper.keep())
        for keeper in others:
            await keeper.running.wait()
        self._manager.ready()
        while True:
            await self._roll.wait()
            self._roll.clear()
            for keeper in self._keepers:
                await keeper.replace()
                if self._roll.is_set():  # asked for again: from the first one on
                    break
            else:
                _logger.info("all workers are restarted")

    def _not_ready(self) -> str | None:
        if self._code is not None:
            return "stopping"
        if not self._keepers:
            return "no worker is started yet"
        return next((wrong for keeper in self._keepers if (wrong := keeper.not_ready()) is not None), None)

    def _not_well(self) -> str | None:
        return next((wrong for keeper in self._keepers if (wrong := keeper.not_well()) is not None), None)

    async def _watch(self) -> None:
        if self._watched is None:
            return
        try:
            async for name in changes(self._watched):
                _logger.info("%s has changed: starting anew", name)
                self._end.set()
        except (OSError, RuntimeError) as error:
            _logger.error("the files in %s cannot be watched: %s", self._watched, error)
            self._code = FAILED if self._code is None else self._code
            self._end.set()

    def _cannot_start(self, code: int) -> None:
        if self._watched is not None:
            _logger.info("waiting for a change")
        elif self._code is None:
            self._code = code
            self._end.set()

    @contextmanager
    def _signals(self) -> Generator[None]:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop, signal.SIGTERM)
        loop.add_signal_handler(signal.SIGINT, self._stop, signal.SIGINT)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # `nohup` means that it stays so
            loop.add_signal_handler(signal.SIGHUP, self._restart, _has_terminal())
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _stop(self, number: signal.Signals) -> None:
        if not self._is_told_to_stop:
            self._is_told_to_stop = True
            _logger.info("stopping %s (%s)", counted(self._workers, "worker"), number.name)
            self._code = 0 if self._code is None else self._code
            self._manager.stopping()
            self._end.set()
        else:
            _logger.warning("killing %s (a second %s)", counted(self._workers, "worker"), number.name)
            self._code = 128 + number
            for keeper in self._keepers:
                keeper.kill()

    def _restart(self, had_terminal: bool) -> None:
        if had_terminal and not _has_terminal():
            self._stop(signal.SIGHUP)  # nobody asked for a restart: the terminal was closed
        else:
            _logger.info("restarting %s, one at a time (SIGHUP)", counted(self._workers, "worker"))
            self._roll.set()


def _has_terminal() -> bool:
    """Return whether this process has a controlling terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
