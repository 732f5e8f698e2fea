"""The stores that this project brings, each as a `StoreUnderTest` in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from everlog.conformance.store import StoreUnderTest
from everlog.store import Store
from everlog.stores import sqlite
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


STORES: Mapping[str, Callable[[Path], StoreUnderTest]] = {"memory": MemoryUnderTest, "sqlite": SqliteUnderTest}
