"""The stores that this project brings, each as a `StoreUnderTest` in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.postgres import MovedServerClock, PostgresSchema
from tests.servers import postgres_url

from everlog.conformance.store import StoreUnderTest
from everlog.store import Store
from everlog.stores import postgres, sqlite
from everlog.testing.clock import ManualClock

LEASE_S = 0.3
"""A case or two keep the event loop busy for as long, in real time."""


class MemoryUnderTest:
    """A store in memory: each opening is a new one."""

    lease_s = LEASE_S

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()

    async def open(self) -> Store:
        return await sqlite.open_store("sqlite::memory:", clock=self.clock, lease_s=self.lease_s)


class SqliteUnderTest:
    """A store in a file."""

    lease_s = LEASE_S

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self._url = f"sqlite:{folder / 'shop.db'}"

    async def open(self) -> Store:
        return await sqlite.open_store(self._url, clock=self.clock, lease_s=self.lease_s)


class PostgresUnderTest:
    """A store in a schema of its own, and tables of the app's own in another."""

    lease_s = LEASE_S

    def __init__(self, schema: PostgresSchema) -> None:
        self.clock = MovedServerClock()
        self._schema = schema
        self._is_new = True

    async def open(self) -> Store:
        store = await postgres.open_store(self._schema.url, clock=self.clock, lease_s=self.lease_s)
        if self._is_new:
            self.clock.follow(self._schema)
            self._is_new = False
        return store


@contextmanager
def _in_memory(folder: Path) -> Generator[StoreUnderTest]:
    yield MemoryUnderTest(folder)


@contextmanager
def _in_sqlite(folder: Path) -> Generator[StoreUnderTest]:
    yield SqliteUnderTest(folder)


@contextmanager
def _in_postgres(folder: Path) -> Generator[StoreUnderTest]:
    schema = PostgresSchema(postgres_url())
    try:
        yield PostgresUnderTest(schema)
    finally:
        schema.drop()


STORES: Mapping[str, Callable[[Path], AbstractContextManager[StoreUnderTest]]] = {
    "memory": _in_memory,
    "sqlite": _in_sqlite,
    "postgres": _in_postgres,
}
