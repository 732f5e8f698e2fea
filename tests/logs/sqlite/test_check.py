"""What `verify` finds below the records: nothing in a log that was trimmed, and everything that retention did not delete."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.logs.sqlite.log_file import KEPT, TOPIC, change, fill, opened, record

from everlog.logs.sqlite.check import faults
from everlog.testing.clock import ManualClock


async def trimmed(path: Path) -> None:
    """Make a log from which retention has deleted: offsets 0 to 9 of one topic, and holes in the other."""
    clock = ManualClock()
    async with opened(path, clock) as log:
        await fill(log, 10)
        for number in (0, 7, 1, 14, 2):  # of the keys k0, k0, k1, k0, k2
            await log.append(KEPT, [record(number)])
        clock.advance(61)
        assert await log.retain() == 12
        await fill(log, 5)
        await log.append(KEPT, [record(8)])


async def test_a_log_that_was_trimmed_has_no_faults(tmp_path: Path) -> None:
    await trimmed(tmp_path / "log.db")
    assert faults(tmp_path / "log.db") == []


_OF_ORDERS = "topic = (SELECT id FROM topic WHERE name = 'shop.orders') AND part = 0"
_OF_STOCK = "topic = (SELECT id FROM topic WHERE name = 'shop.stock') AND part = 0"


@pytest.mark.parametrize(
    ("statements", "found"),
    [
        (
            [f"DELETE FROM chunk WHERE first = 12 AND {_OF_ORDERS}"],
            "shop.orders/0: expected 5 records (15 stored, 10 deleted), found 4",
        ),
        ([f"DELETE FROM chunk WHERE first = 10 AND {_OF_ORDERS}"], "expected its oldest record at offset 10, found 11"),
        ([f"DELETE FROM chunk WHERE {_OF_ORDERS}"], "expected 21 records since the log was made, found 16"),
        ([f"DELETE FROM chunk WHERE first = 14 AND {_OF_ORDERS}"], "expected 21 records since the log was made, found 20"),
        (
            [f"DELETE FROM chunk WHERE first = 2 AND {_OF_STOCK}"],
            "shop.stock/0: expected 4 records (6 stored, 2 deleted), found 3",
        ),
        ([f"UPDATE part SET first_offset = 9 WHERE {_OF_ORDERS}"], "expected its oldest record at offset 9, found 10"),
        ([f"UPDATE part SET gone = 11 WHERE {_OF_ORDERS}"], "expected 12 deleted records, found 13"),
        (["UPDATE gone SET records = 0"], "expected 0 deleted records, found 12"),
        (
            [
                f"DELETE FROM chunk WHERE first = 3 AND {_OF_STOCK}",
                f"UPDATE part SET gone = gone + 1 WHERE {_OF_STOCK}",
                "UPDATE gone SET records = records + 1",
            ],
            "shop.stock/0: expected the newest record of key 'k0' at offset 3, found none",
        ),
    ],
)
async def test_what_retention_did_not_delete_is_missed(tmp_path: Path, statements: list[str], found: str) -> None:
    path = tmp_path / "log.db"
    await trimmed(path)
    change(path, *statements)
    assert found in "\n".join(faults(path))


async def test_checking_beside_one_who_appends_and_deletes_finds_nothing(tmp_path: Path) -> None:
    path, clock = tmp_path / "log.db", ManualClock()
    async with opened(path, clock, keep_s=None, keep_bytes=500) as log:
        for number in range(50):
            await log.append(TOPIC, [record(number)])
            appending = log.append(TOPIC, [record(number)])
            assert await log.verify() == []
            await appending
            await log.retain()
