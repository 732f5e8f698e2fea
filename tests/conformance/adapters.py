"""The logs that this project brings, each as a `LogUnderTest` in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.postgres import MovedServerClock, PostgresSchema
from tests.servers import postgres_url

from everlog.conformance.log import LogUnderTest
from everlog.log import Log
from everlog.logs import memory, postgres, sqlite
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


class PostgresUnderTest:
    """A log in a schema of its own."""

    def __init__(self, schema: PostgresSchema) -> None:
        self.clock = MovedServerClock()
        self._schema = schema
        self._is_new = True

    async def open(self) -> Log:
        log = await postgres.open_log(self._schema.url, clock=self.clock)
        if self._is_new:
            self.clock.follow(self._schema)
            self._is_new = False
        return log


@contextmanager
def _in_memory(folder: Path) -> Generator[LogUnderTest]:
    yield MemoryUnderTest(folder)


@contextmanager
def _in_sqlite(folder: Path) -> Generator[LogUnderTest]:
    yield SqliteUnderTest(folder)


@contextmanager
def _in_postgres(folder: Path) -> Generator[LogUnderTest]:
    schema = PostgresSchema(postgres_url())
    try:
        yield PostgresUnderTest(schema)
    finally:
        schema.drop()


LOGS: Mapping[str, Callable[[Path], AbstractContextManager[LogUnderTest]]] = {
    "memory": _in_memory,
    "sqlite": _in_sqlite,
    "postgres": _in_postgres,
}
