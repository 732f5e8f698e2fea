"""Bugs that are planted on purpose, each against one promise: the state machine has to find every one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import apsw
import pytest
from msgspec.structs import replace

from everlog.codec import Chunk
from everlog.errors import EverlogError
from everlog.log import Status
from everlog.rules import applying
from everlog.store import Emitted, Lease, OutboxRow, Outcome, Progress, Slot, SlotState, Unit
from everlog.stores.sqlite import commit
from everlog.stores.sqlite import leases as leases_of
from everlog.stores.sqlite.store import SqliteStore
from everlog.subscriptions import lane, taking
from everlog.subscriptions.committer import Committer
from everlog.subscriptions.lane import Lane
from everlog.subscriptions.outage import Outage
from everlog.subscriptions.relay import Relay
from everlog.subscriptions.run import Run


def lanes_by_topic_and_key(patch: pytest.MonkeyPatch) -> None:
    """Break that one subscription never runs two events of a key at once, whatever their topics."""

    def lane_of(key: str | None, chunk: Chunk, index: int) -> str:
        return f"{chunk.where.topic}/{key}" if key is not None else f"@{chunk.where}/{chunk.offset(index)}"

    patch.setattr(taking, "lane_of", lane_of)
    patch.setattr(lane, "lane_of", lane_of)


def unfinished_forgotten_on_load(patch: pytest.MonkeyPatch) -> None:
    """Break that what is listed as unfinished is handled by whoever takes the slot over."""
    load = SqliteStore.load

    async def forgetful(self: SqliteStore, lease: Lease) -> SlotState:
        state = await load(self, lease)
        return replace(state, progress=[replace(one, unfinished=()) for one in state.progress])

    patch.setattr(SqliteStore, "load", forgetful)


def parked_key_overtaken(patch: pytest.MonkeyPatch) -> None:
    """Break that later events of a parked key queue up behind it: a new owner does not know which keys are parked."""
    load = SqliteStore.load

    async def unaware(self: SqliteStore, lease: Lease) -> SlotState:
        state = await load(self, lease)
        return replace(state, held=[one for one in state.held if one.next_attempt_us is not None])

    patch.setattr(SqliteStore, "load", unaware)


def reads_not_validated(patch: pytest.MonkeyPatch) -> None:
    """Break that state is serializable: a row that changed after it was read is written all the same."""
    apply = applying.Rows.apply

    def trusting(self: applying.Rows, unit: Unit) -> Outcome:
        unit.reads, unit.scans = {}, []
        return apply(self, unit)

    patch.setattr(applying.Rows, "apply", trusting)


def progress_before_effects(patch: pytest.MonkeyPatch) -> None:
    """Break that progress commits in the transaction of the effects that it stands for: there are two."""
    stored = Committer._stored

    async def torn(
        self: Committer, units: Sequence[Unit], leases: Sequence[Lease], progress: Sequence[tuple[Slot, Progress]]
    ) -> Sequence[Outcome]:
        await stored(self, [], leases, progress)
        return await stored(self, units, leases, progress)

    patch.setattr(Committer, "_stored", torn)


def effects_before_progress(patch: pytest.MonkeyPatch) -> None:
    """Break the same in the other order: what is handled is handled again after a crash."""
    stored = Committer._stored

    async def torn(
        self: Committer, units: Sequence[Unit], leases: Sequence[Lease], progress: Sequence[tuple[Slot, Progress]]
    ) -> Sequence[Outcome]:
        outcomes = await stored(self, units, leases, [])
        await asyncio.sleep(0)
        await stored(self, [], leases, progress)
        return outcomes

    patch.setattr(Committer, "_stored", torn)


def epoch_not_checked(patch: pytest.MonkeyPatch) -> None:
    """Break that who has lost a slot cannot commit for it: the committing transaction does not look at the lease."""

    def is_valid(*_: object) -> bool:
        return True

    patch.setattr(commit, "is_valid", is_valid)


def epoch_checked_before_the_transaction(patch: pytest.MonkeyPatch) -> None:
    """Break the same for the moment between the look at the lease and the commit."""
    whole = SqliteStore.commit
    valid: list[Lease] = []

    async def early(
        self: SqliteStore, units: Sequence[Unit], leases: Sequence[Lease], progress: Sequence[tuple[Slot, Progress]]
    ) -> Sequence[Outcome]:
        with self._snapshot() as connection:
            valid.extend(lease for lease in leases if leases_of.is_valid(connection, lease))
        for _ in range(8):
            await asyncio.sleep(0)
        return await whole(self, units, leases, progress)

    def was_valid(connection: apsw.Connection, lease: Lease) -> bool:
        return lease in valid

    patch.setattr(SqliteStore, "commit", early)
    patch.setattr(commit, "is_valid", was_valid)


def failed_unit_takes_another_along(patch: pytest.MonkeyPatch) -> None:
    """Break that a unit which is not applied leaves its neighbours in the group as they are."""
    apply = applying.Rows.apply

    def clumsy(self: applying.Rows, unit: Unit) -> Outcome:
        outcome = apply(self, unit)
        if outcome is not Outcome.COMMITTED:
            self.changed.clear()
        return outcome

    patch.setattr(applying.Rows, "apply", clumsy)


def put_back_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Break that the record of a unit which was not applied stays unfinished."""
    unfinished = applying._unfinished

    def forgetful(progress: Progress, _: object) -> bytes:
        return unfinished(progress, None)

    patch.setattr(applying, "_unfinished", forgetful)


def copies_dropped_with_the_first(patch: pytest.MonkeyPatch) -> None:
    """Break that what waits behind a held record is handled when that one is through."""
    patch.setattr(commit, "_RELEASE", "DELETE FROM held WHERE key = (SELECT key FROM held WHERE id = ?)")


def relay_without_numbers(patch: pytest.MonkeyPatch) -> None:
    """Break that what was emitted is in the log once, though an answer of the log was lost."""

    async def statuses(
        self: Relay, topic: str, rows: Sequence[OutboxRow]
    ) -> tuple[Sequence[Status], Sequence[EverlogError | None]]:
        appended = await self._log.append(topic, [row.emitted.record for row in rows])
        return appended.statuses, appended.errors or [None] * len(rows)

    patch.setattr(Relay, "_statuses", statuses)


def emitted_backwards(patch: pytest.MonkeyPatch) -> None:
    """Break that the events of a key are emitted in the order in which they were committed."""
    emitted = commit._emitted

    def backwards(units: Sequence[Unit]) -> Sequence[Emitted]:
        return emitted(list(reversed(units)))

    patch.setattr(commit, "_emitted", backwards)


def reader_skips(patch: pytest.MonkeyPatch) -> None:
    """Break that every record is handled: the fourth of a chunk is not."""
    items = Run._one_by_one

    def skipping(self: Run, branches: Any) -> Any:
        return (item for item in items(self, branches) if item[0] != 3)

    patch.setattr(Run, "_decode", skipping)


def lane_left_too_early(patch: pytest.MonkeyPatch) -> None:
    """Break that later events of a key wait while an earlier one is on its way into the store's queue of the key."""

    def is_ordinary(self: Lane) -> bool:
        return not (self.is_running or self.is_scheduled or self.pending)

    patch.setattr(Lane, "is_ordinary", property(is_ordinary))


def no_pause(patch: pytest.MonkeyPatch) -> None:
    """Break that nothing is parked while what the handlers need is down. Found by the tests of outages."""

    def why(self: Outage) -> None:
        return None

    patch.setattr(Outage, "_why", why)


def held_without_order(patch: pytest.MonkeyPatch) -> None:
    """Break that a key's held records are tried in order: the newest comes first."""
    held = SqliteStore.held

    async def newest(self: SqliteStore, slot: Slot, key: str, *, after: int = 0, limit: int = 1) -> Sequence[Any]:
        return list(reversed(await held(self, slot, key, after=after, limit=10_000)))[:limit]

    patch.setattr(SqliteStore, "held", newest)


BUGS: Final[Mapping[str, Callable[[pytest.MonkeyPatch], None]]] = {
    bug.__name__: bug
    for bug in (
        lanes_by_topic_and_key,
        unfinished_forgotten_on_load,
        parked_key_overtaken,
        reads_not_validated,
        progress_before_effects,
        effects_before_progress,
        epoch_not_checked,
        epoch_checked_before_the_transaction,
        failed_unit_takes_another_along,
        put_back_forgotten,
        copies_dropped_with_the_first,
        relay_without_numbers,
        emitted_backwards,
        reader_skips,
        lane_left_too_early,
        held_without_order,
    )
}
"""By name, all that the state machine has to find."""
