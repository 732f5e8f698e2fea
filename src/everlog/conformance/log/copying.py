"""Backups: one new file, whole or not there. What is in it, an adapter tests with files of its own."""
# ruff: noqa: D103 - the name of a case is its sentence

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from everlog.conformance.cases import case, holds, raises, same
from everlog.conformance.log.harness import TOPIC, LogUnderTest, opened, records
from everlog.errors import FeatureMissing, FilePlace


@case(needs="backup")
async def a_backup_is_one_file_that_replaces_nothing(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        await log.append(TOPIC, records(0, 50))
        with TemporaryDirectory() as name:
            seen: list[tuple[int, int]] = []
            target = Path(name) / "folder" / "copy"
            await log.backup(target, progress=lambda done, total: seen.append((done, total)))
            before = target.read_bytes()
            same([found.name for found in target.parent.iterdir()], ["copy"], "the files in the folder")
            holds(bool(seen) and seen[-1][0] == seen[-1][1], f"progress ends with all of it, found {seen[-1:]}")
            await log.append(TOPIC, records(50, 60))
            with raises(FilePlace, "copy"):
                await log.backup(target)
            same(target.read_bytes() == before, True, "the file is as it was")
            same([found.name for found in target.parent.iterdir()], ["copy"], "the files in the folder")


@case()
async def a_log_without_backups_refuses_one(harness: LogUnderTest) -> None:
    async with opened(harness) as log:
        if log.features.backup:
            return
        with TemporaryDirectory() as name:
            target = Path(name) / "copy"
            with raises(FeatureMissing):
                await log.backup(target)
            holds(not target.exists(), "nothing is made")
