"""Random topics, keys, failures, suspensions, conflicts and crashes, with handlers of every kind; compared with a model."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.subscriptions.chaos_app import Chaos
from tests.subscriptions.chaos_kinds import BatchChaos, PlainChaos, SqlChaos
from tests.subscriptions.world import Make, left

from everlog.codec import Chunk
from everlog.store import Lease, Progress, Section, Slot, Unit
from everlog.stores.sqlite.section import SqliteSection
from everlog.subscriptions.batches import Batches
from everlog.subscriptions.calls import Calls
from everlog.subscriptions.committer import Committer
from everlog.subscriptions.run import Run

SEEDS: dict[type[Chaos], tuple[range, range]] = {
    Chaos: (range(40), range(100, 104)),
    BatchChaos: (range(40), range(100, 103)),
    PlainChaos: (range(30), range(100, 103)),
    SqlChaos: (range(200, 220), range(300, 306)),
}
"""Kind → seeds of worlds in memory, and of worlds in files."""


@pytest.mark.parametrize(("kind", "seed"), [(kind, seed) for kind, (seeds, _) in SEEDS.items() for seed in seeds])
async def test_whatever_happens_the_end_is_as_if_one_event_had_followed_the_other(
    world: Make, kind: type[Chaos], seed: int
) -> None:
    chaos = kind(seed)
    w = await world(chaos.app, shaky=random.Random(seed) if seed % 2 else None)
    assert await chaos.run(w, events=240, crashes=seed % 6) == []


@pytest.mark.parametrize(("kind", "seed"), [(kind, seed) for kind, (_, seeds) in SEEDS.items() for seed in seeds])
async def test_it_is_so_in_files_too(world: Make, tmp_path: Path, kind: type[Chaos], seed: int) -> None:
    chaos = kind(seed)
    w = await world(chaos.app, folder=tmp_path)
    assert await chaos.run(w, events=240, crashes=3) == []


# ---- positive controls: each of these bugs must be caught ----


async def _any_caught(world: Make, kind: type[Chaos], seeds: Sequence[int], *, crashes: int = 5) -> bool:
    for seed in seeds:
        chaos = kind(seed)
        w = await world(chaos.app, shaky=random.Random(seed) if crashes else None)
        try:
            if await chaos.run(w, events=240, crashes=crashes):
                return True
        except (TimeoutError, AssertionError):
            return True
    return False


async def test_progress_that_is_committed_without_its_effects_is_caught(world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Committer._stored

    async def torn(
        self: Committer, units: Sequence[Unit], leases: Sequence[Lease], progress: Sequence[tuple[Slot, Progress]]
    ) -> Any:
        """Two transactions where one belongs."""
        await stored(self, [], leases, progress)
        await asyncio.sleep(0)
        return await stored(self, units, leases, progress)

    monkeypatch.setattr(Committer, "_stored", torn)
    assert await _any_caught(world, Chaos, range(10))


async def test_a_reader_that_skips_a_record_is_caught(world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Run.__init__

    def skipping(self: Run, chunk: Chunk, *rest: Any, **named: Any) -> None:
        made(self, chunk, *rest, **named)
        if chunk.where.topic == left.name and chunk.first > 5 and len(chunk) > 3:
            next(self.items, None)

    monkeypatch.setattr(Run, "__init__", skipping)
    assert await _any_caught(world, Chaos, [1])


async def test_a_batch_that_is_finished_only_after_its_commit_was_told_is_caught(
    world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two, progress that is stored would call its records unfinished again."""
    settled = Batches._settled

    async def later(self: Batches, *rest: Any) -> None:
        for _ in range(3):  # 25 of 40 seeds meet a crash in so many turns of the loop
            await asyncio.sleep(0)
        settled(self, *rest)

    tasks: list[asyncio.Task[None]] = []

    def start(self: Batches, *rest: Any) -> None:
        tasks.append(asyncio.create_task(later(self, *rest)))

    monkeypatch.setattr(Batches, "_settled", start)
    assert await _any_caught(world, BatchChaos, range(20))


async def test_effects_of_a_call_that_failed_are_caught(world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The positive control: a call whose error is lost on its way out of the thread."""
    in_thread = Calls._in_thread

    async def lossy(self: Calls, *rest: Any) -> object:
        try:
            return await in_thread(self, *rest)
        except RuntimeError:
            return None

    monkeypatch.setattr(Calls, "_in_thread", lossy)
    assert await _any_caught(world, PlainChaos, range(10), crashes=0)


async def test_statements_that_outlive_their_unit_are_caught(world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async def undo(self: Section) -> None:
        await self.keep()

    monkeypatch.setattr(SqliteSection, "undo", undo)
    assert await _any_caught(world, SqlChaos, range(200, 210), crashes=1)
