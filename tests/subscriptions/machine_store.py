"""The ports of the state machine: handles of one store and one log, each of which can fail, and which do nothing by themselves.

The store is the real one, over a database in memory that commits on the event loop of whoever asks, in its next turn, and not in a thread:
so a run can be repeated step by step.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import apsw

from everlog.clock import Clock
from everlog.drivers.sqlite.bell import Bell
from everlog.drivers.sqlite.connection import connect, disconnect
from everlog.drivers.sqlite.database import Database
from everlog.errors import LogError, StoreError, StoreReadOnly
from everlog.log import Appended, Expect, ProducerBatch, Status
from everlog.logs.memory import MemoryLog, MemoryReader
from everlog.record import NewRecord
from everlog.store import Lease, Outcome, Progress, Slot, Unit
from everlog.stores.sqlite import store as sqlite
from everlog.stores.sqlite.store import Job, SqliteStore
from everlog.stores.sqlite.tables import STORE

T = TypeVar("T")

LEASE_S = 5.0


class Faults:
    """What the disk and the wire do to everybody, and what was committed under which epoch."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.is_full = False
        """The store takes no writes."""
        self.lost_commits = 0
        """So many of the next commits have no answer."""
        self.lost_appends = 0
        """So many of the next appends have no answer."""
        self.committed: list[tuple[Unit, int]] = []
        """Every unit that was applied, with the epoch of its lease, in the order of the commits."""


class Cabinet:
    """A store's database in memory, which several processes of the machine open."""

    def __init__(self) -> None:
        self.connection: apsw.Connection | None = None
        self.bells: list[Bell] = []

    def close(self) -> None:
        if self.connection is not None:
            disconnect(self.connection)
            self.connection = None


class PromptDatabase(Database[Job, object]):
    """A database in memory without a thread: what is submitted in one turn of the event loop is one group, committed in the next."""

    def __init__(self, cabinet: Cabinet, apply: Any, *, wall_us: Callable[[], int]) -> None:
        super().__init__(None, STORE, apply, size_of=lambda job: job.size, wall_us=wall_us)
        self._cabinet = cabinet
        self._submitted: list[tuple[Job, asyncio.Future[object]]] = []

    async def open(self) -> None:
        if self._cabinet.connection is None:
            self._cabinet.connection = connect(None, STORE, create=True, writes=True)
        self._writer = self._reader = self._cabinet.connection
        self.bell = Bell(None)
        self.bell.listen()
        self._cabinet.bells.append(self.bell)

    def submit(self, job: Job) -> asyncio.Future[object]:
        self._check_open()
        future: asyncio.Future[object] = self._loop.create_future()
        if not self._submitted:
            self._loop.call_soon(self._flush)
        self._submitted.append((job, future))
        return future

    def drop(self) -> None:
        """Forget what is not committed yet, as the end of the process does."""
        self._submitted.clear()

    def _flush(self) -> None:
        group, self._submitted = self._submitted, []
        if not group:
            return
        self._commit(group)
        for bell in self._cabinet.bells:
            if bell is not self.bell:
                bell.ring(0)

    async def aclose(self) -> None:
        if not self._closed:
            self._flush()
            self._closed = True
            self.bell.close()
            self._cabinet.bells.remove(self.bell)


class Handle(SqliteStore):
    """One process's handle of the store.

    Args:
        cabinet: The database.
        clock: The time of leases.
        faults: What befalls its writes; ``None``: nothing, for whoever looks on.
    """

    def __init__(self, cabinet: Cabinet, *, clock: Clock, faults: Faults | None) -> None:
        super().__init__(None, clock=clock, lease_s=LEASE_S)
        self._database = self._prompt = PromptDatabase(cabinet, sqlite._apply, wall_us=clock.wall_us)
        self._faults = faults
        self.is_dead = False

    def kill(self) -> None:
        """Let nothing more of it reach the store."""
        self.is_dead = True
        self._member = None
        self._prompt.drop()

    def beat(self) -> None:
        """Give a sign of life, as the writer thread does whatever the event loop is at."""
        job = None if self._faults is not None and self._faults.is_full else self._heartbeat()
        if job is not None:
            self._database.submit(job)

    async def _write(self, run: Callable[[apsw.Connection], T], *, size: int = 0, is_alone: bool = False) -> T:
        if self.is_dead:
            raise StoreError("the process was killed")
        if self._faults is not None and self._faults.is_full:
            await asyncio.sleep(0)
            raise StoreReadOnly("no room")
        return await super()._write(run, size=size, is_alone=is_alone)

    async def commit(
        self, units: Sequence[Unit], leases: Sequence[Lease], progress: Sequence[tuple[Slot, Progress]]
    ) -> Sequence[Outcome]:
        faults = self._faults
        assert faults is not None
        is_lost = faults.lost_commits > 0 and not faults.is_full
        if is_lost:
            faults.lost_commits -= 1
        if not is_lost or faults.dice.random() < 0.5:
            outcomes = await super().commit(units, leases, progress)
            epochs = {lease.slot: lease.epoch for lease in leases}
            faults.committed += [
                (unit, epochs[unit.slot]) for unit, outcome in zip(units, outcomes, strict=True) if outcome is Outcome.COMMITTED
            ]
            if not is_lost:
                return outcomes
        raise StoreError("the commit has no answer")


class Line(list[MemoryReader]):
    """Readers in the order in which they came: a set would wake them in another order each time."""

    add = list[MemoryReader].append


class ShakyMemoryLog(MemoryLog):
    """A log in memory whose answers get lost."""

    def __init__(self, clock: Clock, faults: Faults) -> None:
        super().__init__(clock)
        self._faults = faults
        self._readers = Line()  # type: ignore[assignment]

    def append(
        self,
        topic: str,
        records: Sequence[NewRecord],
        *,
        producer: ProducerBatch | None = None,
        expect: Expect | None = None,
    ) -> Coroutine[Any, Any, Appended]:
        faults = self._faults
        if not faults.lost_appends or producer is None or not topic.startswith("machine."):
            return super().append(topic, records, producer=producer, expect=expect)
        faults.lost_appends -= 1
        if faults.dice.random() < 0.5:
            super().append(topic, records, producer=producer, expect=expect).close()  # it is stored when it is called
        return _unanswered(len(records))


async def _unanswered(count: int) -> Appended:
    await asyncio.sleep(0)
    return Appended([Status.UNKNOWN] * count, [None] * count, [LogError("the answer was lost")] * count)
