"""The logs that this project brings, each as a `LogUnderTest` in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from everlog.conformance.log import LogUnderTest
from everlog.log import Log
from everlog.logs import memory, sqlite
from everlog.testing.clock import ManualClock


class MemoryUnderTest:
    """A log in memory: each opening is a new one."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()

    async def open(self) -> Log:
        return await memory.open_log("memory:", clock=self.clock)


class SqliteUnderTest:
    """A log in a file."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self._url = f"sqlite:{folder / 'log.db'}"

    async def open(self) -> Log:
        return await sqlite.open_log(self._url, clock=self.clock)


LOGS: Mapping[str, Callable[[Path], LogUnderTest]] = {"memory": MemoryUnderTest, "sqlite": SqliteUnderTest}
