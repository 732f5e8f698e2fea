"""Backups: one new file, whole or not there. What is in it, an adapter tests with files of its own."""
# ruff: noqa: D103 - the name of a case is its sentence

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from everlog.conformance.cases import case, holds, raises, same
from everlog.conformance.store.harness import SLOT, StoreUnderTest, at_work, number, opened
from everlog.errors import FeatureMissing, FilePlace
from everlog.store import Put


@case(needs="backup")
async def a_backup_is_one_file_that_replaces_nothing(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        store = worker.store
        await worker.committed(worker.writing({'["a"]': Put(number(1))}))
        with TemporaryDirectory() as name:
            seen: list[tuple[int, int]] = []
            target = Path(name) / "folder" / "copy"
            await store.backup(target, progress=lambda done, total: seen.append((done, total)))
            before = target.read_bytes()
            same([found.name for found in target.parent.iterdir()], ["copy"], "the files in the folder")
            holds(bool(seen) and seen[-1][0] == seen[-1][1], f"progress ends with all of it, found {seen[-1:]}")
            await worker.committed(worker.writing({'["a"]': Put(number(2))}))
            with raises(FilePlace, "copy"):
                await store.backup(target)
            same(target.read_bytes() == before, True, "the file is as it was")
            same([found.name for found in target.parent.iterdir()], ["copy"], "the files in the folder")


@case()
async def a_store_without_backups_refuses_one(harness: StoreUnderTest) -> None:
    async with opened(harness) as store:
        if store.features.backup:
            return
        with TemporaryDirectory() as name:
            target = Path(name) / "copy"
            with raises(FeatureMissing):
                await store.backup(target)
            holds(not target.exists(), "nothing is made")
