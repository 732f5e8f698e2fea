"""The store of an app in a world, as one start of the app has it open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import apsw

from everlog.clock import Clock
from everlog.drivers.process import Deaths
from everlog.errors import EverlogError, StoreError, StoreReadOnly
from everlog.position import Offset
from everlog.store import Held, Lease, OutboxRow, Outcome, ParkedKey, Progress, Slot, StateKey, Unit
from everlog.stores.sqlite import held, leases, rows
from everlog.stores.sqlite.names import names
from everlog.stores.sqlite.section import SqliteSection
from everlog.stores.sqlite.store import Job, SqliteStore, progress_of
from everlog.testing.life import Life

T = TypeVar("T")

_BYTES: Final = 512
_AT_ONCE_S: Final = 60.0


class MemberStore(SqliteStore):
    """One member's way to the store.

    In memory all members of an app share one database, and each write is done when its call is made: what happens next does not depend on how
    fast a thread is.

    Args:
        path: The file; ``None``: in memory.
        clock: The time of leases.
        lease_s: For how long a member may be silent.
        life: Whose it is; ``None`` for the one that only keeps the database.
        keeper: The store that keeps the database in memory; ``None`` where this opens its own.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        clock: Clock,
        lease_s: float,
        life: Life | None = None,
        keeper: MemberStore | None = None,
    ) -> None:
        super().__init__(path, clock=clock, lease_s=lease_s)
        self._life = life
        self._keeper = keeper
        self._is_silent = False
        self.sections = 0
        """So many transactions of statements are open: their writer thread waits for the event loop."""

    async def open(self) -> None:
        if self._keeper is None:
            await super().open()
            return
        self._keeper.lend(self)
        self._deaths = Deaths(self._database.bell.wake)

    def lend(self, other: MemberStore) -> None:
        """Let another member use the same database."""
        other._database = self._database
        other.identity, other.incarnation = self.identity, self.incarnation

    async def commit(
        self, units: Sequence[Unit], leases: Sequence[Lease], progress: Sequence[tuple[Slot, Progress]]
    ) -> Sequence[Outcome]:
        await self._check()
        outcomes = await super().commit(units, leases, progress)
        done = [unit for unit, outcome in zip(units, outcomes, strict=True) if outcome is Outcome.COMMITTED]
        if self._life is not None and any(not unit.holds and (unit.finishes or unit.releases) for unit in done):
            await self._life.reach("after_commit")
        return outcomes

    async def section(self) -> SqliteSection:
        await self._check()
        return await super().section()

    async def number(self, lease: Lease, rows: Sequence[int], *, done: Sequence[int] = ()) -> Sequence[OutboxRow]:
        await self._check()
        return await super().number(lease, rows, done=done)

    async def _check(self) -> None:
        """Refuse to write in an outage."""
        if self._life is None:
            return
        await self._life.go_on()
        left_s = self._life.plan.store.left_s
        if left_s:
            raise StoreReadOnly(
                f"the store takes no writes for {left_s:g} s more, as World.store_outage says: nothing was stored"
            )

    async def _write(self, run: Callable[[apsw.Connection], T], *, size: int = _BYTES, is_alone: bool = False) -> T:
        life = self._life
        if life is None:
            return await super()._write(run, size=size, is_alone=is_alone)
        await life.go_on()
        if is_alone:
            return await self._served(life, run, size)
        with life.motion.working():
            if self._keeper is None or self._keeper.sections:
                return await super()._write(run, size=size)
            return self._done(run)

    async def _served(self, life: Life, run: Callable[[apsw.Connection], T], size: int) -> T:
        """Have a transaction of statements served, to its end."""
        keeper = self._keeper or self
        keeper.sections += 1
        try:
            with life.motion.working():  # a piece of it that takes too long ends it, in real time
                result = await super()._write(run, size=size, is_alone=True)
        finally:
            keeper.sections -= 1
        await life.reach("after_commit")
        return result

    def _done(self, run: Callable[[apsw.Connection], T]) -> T:
        """Have the writer thread do something now, and wait for it."""
        results: list[T] = []
        errors: list[EverlogError] = []

        def kept(connection: apsw.Connection) -> None:
            try:
                results.append(run(connection))
            except EverlogError as error:
                errors.append(error)
                raise

        is_done = self._database.do(Job(kept, _BYTES), _AT_ONCE_S)
        if errors:
            raise errors[0]
        if not is_done or not results:
            raise StoreError("the store in memory did not do what it was asked, and nobody knows why")
        return results[0]

    async def _anyway(self, run: Callable[[apsw.Connection], T]) -> T:
        """Write, whatever has become of the member."""
        return await super()._write(run)

    def _heartbeat(self) -> Job | None:
        return None if self._is_silent else super()._heartbeat()

    async def silence(self) -> None:
        """Let others take its slots, as if it had not been heard of for longer than the lease."""
        self._is_silent = True
        if self._member is not None:
            number = self._member.number
            await self._anyway(lambda connection: leases.silence(connection, number))

    def row(self, place: StateKey) -> bytes | None:
        """Return a committed row."""
        with self._database.reading() as connection:
            return rows.read(connection, names(connection), [place])[0].value

    def all_rows(self, state: str) -> Sequence[tuple[str, bytes | None]]:
        """Return the committed rows of a state, by key text."""
        with self._database.reading() as connection:
            return [(key, row.value) for key, row in rows.scan(connection, names(connection), state, "[]")]

    def parked_now(self) -> Sequence[ParkedKey]:
        """Return each key with held records, parked or to be tried again."""
        with self._database.reading() as connection:
            return held.first_of_each(connection, None, 0, -1, key=None, type_name=None, error=None)

    def held_now(self, subscription: str) -> Sequence[Held]:
        """Return all held records of a subscription."""
        with self._database.reading() as connection:
            firsts = held.first_of_each(connection, subscription, 0, -1, key=None, type_name=None, error=None)
            return [
                one for first in firsts for one in held.queue(connection, Slot(subscription, first.first.slot), first.key, 0, -1)
            ]

    def finished_now(self, subscription: str, place: tuple[str, int, Offset]) -> bool:
        """Tell whether a record is finished."""
        topic, partition, offset = place
        with self._database.reading() as connection:
            for one in progress_of(connection, subscription, partition):
                if one.where.topic == topic:
                    return offset <= one.through and offset not in one.unfinished
        return True  # it began behind it

    async def aclose(self) -> None:
        if self._life is not None and self._life.is_dead:  # as after a kill: nothing is given back
            try:
                await self.silence()
            finally:
                self._member = None
        if self._keeper is None:
            await super().aclose()
            return
        try:
            if self._member is not None:
                member, self._member = self._member, None
                await self._anyway(lambda connection: leases.leave(connection, member.number))
        finally:
            self._deaths.close()
