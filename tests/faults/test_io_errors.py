"""Writes and syncs that fail, one at each place of a short run: nothing is told that is not kept, reading goes on, and work resumes by itself."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.faults.io_errors import Found
from tests.processes.yard import ROOT

import everlog

EVERY = {"log": int(os.environ.get("IO_EVERY", "9")), "store": int(os.environ.get("IO_EVERY", "90"))}
"""Every so many calls one fails: `IO_EVERY=1` tries each."""


async def found_in(folder: Path, which: str, calls: str, *bug: str) -> Sequence[Found]:
    source = str(Path(everlog.__file__).parents[1])
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.faults.io_errors", which, calls, str(folder), str(1_000 if bug else EVERY[which] * (5 if calls == "reading" else 1)), *bug,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([source, str(ROOT)])},
    )  # fmt: skip
    said, errors = await child.communicate()
    assert child.returncode == 0, errors.decode()[-3_000:]
    return [Found(*one) for one in json.loads(said)]


@pytest.mark.parametrize("which", ["log", "store"])
async def test_a_call_that_fails_loses_nothing_and_work_goes_on_when_the_disk_is_well_again(which: str, tmp_path: Path) -> None:
    found = await found_in(tmp_path, which, "writing")
    assert [one for one in found if one.faults] == []
    assert [one.case for one in found if not one.runs] == []  # each case was met


@pytest.mark.parametrize("which", ["log", "store"])
async def test_a_read_that_fails_is_an_error_of_ours_and_work_goes_on(which: str, tmp_path: Path) -> None:
    found = await found_in(tmp_path, which, "reading")
    assert [one for one in found if one.faults] == []
    assert [one.case for one in found if not one.runs] == []


async def found_while_opening(folder: Path, which: str, *bug: str) -> Sequence[Found]:
    source = str(Path(everlog.__file__).parents[1])
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.faults.io_opening", which, str(folder), *bug,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([source, str(ROOT)])},
    )  # fmt: skip
    said, errors = await child.communicate()
    assert child.returncode == 0, errors.decode()[-3_000:]
    return [Found(*one) for one in json.loads(said)]


@pytest.mark.parametrize("which", ["log", "store"])
async def test_a_call_that_fails_while_a_file_is_opened_is_told_and_the_file_stays_as_it_is(which: str, tmp_path: Path) -> None:
    found = await found_while_opening(tmp_path, which)
    assert [one for one in found if one.faults] == []
    assert [one.case for one in found if not one.runs] == []


# ---- positive controls ----


@pytest.mark.parametrize("which", ["log", "store"])
async def test_a_file_that_is_taken_for_new_because_it_could_not_be_opened_is_caught(which: str, tmp_path: Path) -> None:
    found = await found_while_opening(tmp_path, which, "takes it for new")
    assert [one for one in found if one.faults] != []


@pytest.mark.parametrize("bug", ["tells what it has not committed", "builds on what was not synced"])
async def test_a_seeded_bug_is_caught(bug: str, tmp_path: Path) -> None:
    found = await found_in(tmp_path, "log", "writing", bug)
    assert [one for one in found if one.faults] != []
