"""The command line on damaged files: a line that says what is wrong and what to do, exit code 1, no traceback."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.shop import EVERLOG
from tests.faults import damage_log, damage_store
from tests.faults.damage_anatomy import FRAME, PAGE, WAL_HEADER, anatomy, by_structure
from tests.faults.damage_campaign import dice_of
from tests.faults.damage_facts import Files, Healthy, laid_out
from tests.faults.damage_faults import Fault, chunk_faults

_PATIENCE_S = 60


def _flipped(files: Files, structure: str) -> Files:
    span = by_structure(anatomy(files))[structure][0]
    body = bytearray(files[span.suffix])
    body[(span.start + span.stop) // 2] ^= 1
    return {**files, span.suffix: bytes(body)}


def _cut(files: Files) -> Files:
    return {**files, "": files[""][: -PAGE - 100]}


def _without_the_wal(files: Files) -> Files:
    return {suffix: content for suffix, content in files.items() if suffix != "-wal"}


def _with_half_a_wal(files: Files) -> Files:
    return {**files, "-wal": files["-wal"][: WAL_HEADER + FRAME * 20 + 7]}


def _with_a_strange_header(files: Files) -> Files:
    return {**files, "": b"~" + files[""][1:]}


def _with_a_bad_page(files: Files) -> Files:
    return _flipped(files, "cells, leaf table")


def _with_a_bad_free_page(files: Files) -> Files:
    return _flipped(files, "free trunk page")


Damage = Callable[[Files], Files]


def everlog(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run a command, and return its exit code and all that it said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EVERLOG_")}
    ended = subprocess.run(
        [EVERLOG, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
        check=False,
    )
    return ended.returncode, " ".join(f"{ended.stdout}\n{ended.stderr}".split())


def damaged(folder: Path, condition: str, damage: Damage) -> Path:
    """Put a damaged log into a folder of its own, which is where the search for `.everlog/` ends."""
    (folder / "pyproject.toml").touch()
    for name in ("made", ".everlog"):
        (folder / name).mkdir(mode=0o700)
    made = asyncio.run(_made(folder / "made", condition))
    return laid_out(damage(made), folder / ".everlog", "log.db")


async def _made(folder: Path, condition: str) -> Files:
    return (await damage_log.healthy(folder))[condition].files


@pytest.mark.parametrize(
    ("condition", "damage", "said"),
    [
        ("closed", _with_a_strange_header, "or its header is damaged"),
        ("closed", _cut, "restore it from a backup"),
        ("closed", _with_a_bad_page, "restore it from a backup"),
        ("closed", _with_a_bad_free_page, "log.db"),
        ("half reused WAL", _without_the_wal, "acknowledged data is missing"),
        ("in the WAL", _with_half_a_wal, "acknowledged data is missing"),
    ],
)
def test_verify_says_what_is_damaged(tmp_path: Path, condition: str, damage: Damage, said: str) -> None:
    damaged(tmp_path, condition, damage)
    code, text = everlog(tmp_path, "verify")
    assert code == (4 if damage is _with_a_strange_header else 1), text  # then it cannot even be opened
    assert said in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("condition", "damage", "said"),
    [
        ("closed", _with_a_strange_header, "or its header is damaged"),
        ("closed", _cut, "restore it from a backup"),
        ("half reused WAL", _without_the_wal, "were acknowledged, and the file ends at"),
    ],
)
def test_doctor_says_what_is_damaged_and_changes_nothing(tmp_path: Path, condition: str, damage: Damage, said: str) -> None:
    path = damaged(tmp_path, condition, damage)
    before = {beside.name: beside.read_bytes() for beside in path.parent.iterdir()}
    code, text = everlog(tmp_path, "doctor")
    assert code == 1, text
    assert said in text
    assert "Traceback" not in text
    assert {beside.name: beside.read_bytes() for beside in path.parent.iterdir()} == before


def test_verify_names_the_chunk_that_memory_has_changed(tmp_path: Path) -> None:
    (tmp_path / "changed").mkdir()

    def changed(files: Files) -> Files:
        healthy = Healthy("log.db", files, files)
        fault: Fault = next(chunk_faults(healthy, tmp_path / "changed", dice_of(1, "commands")))
        return fault.files

    damaged(tmp_path, "closed", changed)
    code, text = everlog(tmp_path, "verify")
    assert code == 1, text
    assert "chunk at offset" in text
    assert "restore the log from a backup" in text
    assert "Traceback" not in text


def test_verify_says_what_is_damaged_in_a_store(tmp_path: Path) -> None:
    damaged(tmp_path, "closed", dict)
    (tmp_path / "store").mkdir()
    for suffix, content in _with_a_bad_page(asyncio.run(_made_store(tmp_path / "store"))).items():
        (tmp_path / ".everlog" / f"shop.db{suffix}").write_bytes(content)
    code, text = everlog(tmp_path, "verify", "--app", "shop")
    assert code == 1, text
    assert "shop.db" in text
    assert "Traceback" not in text


async def _made_store(folder: Path) -> Files:
    return (await damage_store.healthy(folder))["closed"].files
