"""Reading a file in which something is missing or changed: damage is named, and never read over."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.logs.sqlite.log_file import KEPT, TOPIC, WHERE, change, damage, fill, fill_around, opened, record

from everlog.errors import FileDamaged, RecordsGone
from everlog.position import BEGINNING, Offset, TopicPartition
from everlog.testing.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


async def test_a_gap_that_retention_did_not_make_is_damage(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as log:
        await fill(log, 6)
    change(path, "DELETE FROM chunk WHERE first = 3 AND topic = 1")
    async with opened(path, clock) as log:
        reader = log.reader({WHERE: BEGINNING})
        batch = await reader.next()
        assert [one.time_us for one in batch.records()] == [0, 1, 2]  # what stands before it comes first
        for _ in range(2):
            with pytest.raises(FileDamaged, match=r"expected the record behind offset 2 of shop\.orders/0, found the one at 4"):
                await reader.next()
        beyond = log.reader({WHERE: Offset(3)})
        assert [one.time_us for one in (await beyond.next()).records()] == [4, 5]


async def test_a_gap_before_what_a_live_reader_gets_is_damage(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as log:
        await fill(log, 2)
        reader = log.reader({WHERE: BEGINNING, TopicPartition(KEPT, 0): BEGINNING})
        await reader.next()
        await log.append(KEPT, [record(0)])
        await reader.next()
        await fill(log, 3)
        change(path, "DELETE FROM chunk WHERE first = 2 AND topic = 1")
        with pytest.raises(FileDamaged, match=r"behind offset 1 of shop\.orders/0, found the one at 3"):
            await reader.next()


async def test_a_changed_page_is_damage_and_no_error_of_the_database(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as log:
        await fill_around(log, b"y" * 200)
    damage(path, b"y" * 200)
    async with opened(path, clock) as log:
        for _ in range(2):
            with pytest.raises(FileDamaged):
                await log.reader({WHERE: BEGINNING}).next()
        assert (await log.append(TOPIC, [record(40)])).settled


async def test_a_reader_that_was_told_goes_on_with_other_partitions_alone(path: Path, clock: ManualClock) -> None:
    async with opened(path, clock) as log:
        other = TopicPartition(TOPIC, 1)
        reader = log.reader({WHERE: BEGINNING, other: BEGINNING})
        await fill(log, 3)
        await log.trim(TOPIC, await log.head(TOPIC))
        await log.append(TOPIC, [record(3, partition=1)])
        with pytest.raises(
            RecordsGone, match=r"shop\.orders/0: .* behind offset -1.*up to offset 2.*everlog topics set shop\.orders"
        ):
            await reader.next()
        reader.revoke([WHERE])
        assert (await reader.next()).through == {other: 0}
