"""Clocks that jump, machines that sleep and reboot: nothing is lost, doubled, reordered, deleted early, or kept waiting.

What cannot be known: that the time is wrong with which a process *begins*. Retention by age in such a process deletes by that time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import apsw
import pytest
from tests.faults.clock_shop import ClockShop
from tests.subscriptions import world as worlds

from everlog.clock import Steady
from everlog.drivers.sqlite.rows import rows_of
from everlog.stores.sqlite import leases
from everlog.stores.sqlite.leases import Now
from everlog.subscriptions.lane import Lane
from everlog.subscriptions.lanes import Lanes

SEEDS = int(os.environ.get("CLOCK_SEEDS", "16"))
STEPS = 60

Patch = pytest.MonkeyPatch


@pytest.fixture
def place() -> Generator[Path]:
    """A folder in memory where the system has one."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() and os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


async def run(seed: int, folder: Path, patch: Patch) -> list[str]:
    """Return what is wrong after one run."""
    shop = ClockShop(seed, folder, patch)
    await shop.boot()
    try:
        return await shop.run(STEPS)
    finally:
        await shop.shut()


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_whatever_the_clock_does_the_promises_hold(place: Path, monkeypatch: Patch, seed: int) -> None:
    assert await run(seed, place, monkeypatch) == []


# ---- positive controls: each of these bugs must be caught ----


async def _caught(place: Path, patch: Patch, seeds: Sequence[int]) -> list[str]:
    patch.setattr(worlds, "DEADLINE_S", 1.0)
    for seed in seeds:
        (place / f"{seed}").mkdir()
        try:
            wrong = await run(seed, place / f"{seed}", patch)
        except (AssertionError, TimeoutError) as error:
            return [f"{type(error).__name__}: {error}"]
        if wrong:
            return wrong
    return []


async def test_retention_by_the_bare_wall_time_is_caught(place: Path, monkeypatch: Patch) -> None:
    def jumping(self: Steady) -> int:
        return self._clock.wall_us()

    monkeypatch.setattr(Steady, "wall_us", jumping)
    assert await _caught(place, monkeypatch, range(10))


async def test_a_retry_whose_time_is_not_clamped_is_caught(place: Path, monkeypatch: Patch) -> None:
    set_due = Lanes.set_due

    def unclamped(self: Lanes, lane: Lane, due_us: int) -> None:
        with suppress(AttributeError):
            self._most_us = 1 << 62
        set_due(self, lane, due_us)

    monkeypatch.setattr(Lanes, "set_due", unclamped)
    found = "\n".join(await _caught(place, monkeypatch, range(10)))
    assert "never settles" in found or "to be tried again" in found


async def test_leases_that_outlive_their_boot_are_caught(place: Path, monkeypatch: Patch) -> None:
    def of_any_boot(connection: apsw.Connection, now: Now) -> Sequence[tuple[int, bool, Mapping[str, Sequence[str]]]]:
        rows = rows_of(connection, "SELECT number, seen_s FROM member ORDER BY number")
        return [(number, seen_s > now.seconds - now.lease_s, {"app": ["test.left/1"]}) for number, seen_s in rows]

    monkeypatch.setattr(leases, "_members", of_any_boot)
    assert "TimeoutError" in "\n".join(await _caught(place, monkeypatch, range(10)))
