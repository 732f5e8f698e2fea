"""Damaged files: after any fault in a log or a store, what is found is right, or an error says what is damaged and what to do.

`DAMAGE_FAULTS` sets how many faults there are in all, and `DAMAGE_SEED` which.

What no check here can know, since what is left is whole and agrees with itself:
- a WAL that is cut at an older commit, together with the bell of that moment or without one; and so any set of files from one earlier moment;
- one page that came back as it was earlier (a write that the disk lost), with the checksum of then, and the head with the newest number;
- a value that faulty memory changed before its page got its checksum. In the log the checksum of the chunk finds it; a row of a store has none.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Generator, Mapping
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import apsw
import pytest
from tests.faults import damage_campaign
from tests.faults.damage_anatomy import CHECKSUM, PAGE, anatomy, by_structure
from tests.faults.damage_campaign import SUBJECTS, Campaign, campaign, dice_of
from tests.faults.damage_facts import Healthy, laid_out
from tests.faults.damage_faults import Fault, chunk_faults, faults

from everlog import codec
from everlog.conformance.store.harness import LOG
from everlog.drivers.sqlite import database
from everlog.drivers.sqlite.bell import Bell
from everlog.drivers.sqlite.connection import connect
from everlog.errors import FileDamaged
from everlog.logs.sqlite import open_log
from everlog.stores.sqlite import open_store
from everlog.testing.clock import ManualClock

FAULTS: Final = int(os.environ.get("DAMAGE_FAULTS", "5000"))
SEED: Final = int(os.environ.get("DAMAGE_SEED", "1"))
CONDITIONS: Final = ("in the WAL", "half reused WAL", "closed")
SHARE: Final = FAULTS * 24 // 25 // 6
"""Of each of two files in three conditions; the rest are faults inside of chunks."""

Subjects = Mapping[str, Mapping[str, Healthy]]


@pytest.fixture(scope="module")
def place() -> Generator[Path]:
    """A folder in memory where the system has one: files are made anew for each fault."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() and os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def healthy(place: Path) -> Subjects:
    """The files in every condition, by subject."""
    made: dict[str, Mapping[str, Healthy]] = {}
    for name, subject in SUBJECTS.items():
        (place / name).mkdir()
        made[name] = asyncio.run(_made(subject.make, place / name))
    return made


async def _made(make: Any, folder: Path) -> Mapping[str, Healthy]:
    return await make(folder)  # type: ignore[no-any-return]


@pytest.fixture
def spot(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which no file is watched: nothing is waited for, and the kernel takes 4 ms to end a watch."""
    monkeypatch.setattr(Bell, "listen", _hears_nothing)
    return Path(tempfile.mkdtemp(dir=place))


def _hears_nothing(_: Bell) -> None:
    pass


def _was_never_rung(_: Bell) -> int:
    return 0


# ---- what is damaged ----


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("name", SUBJECTS)
def test_each_byte_belongs_to_one_structure(healthy: Subjects, name: str, condition: str) -> None:
    files = healthy[name][condition].files
    for suffix in ("", "-wal", "-bell", "-turn"):
        ends = [(span.start, span.stop) for span in anatomy(files) if span.suffix == suffix]
        assert [start for start, _ in ends] == [0, *[stop for _, stop in ends]][: len(ends)]
        assert (ends[-1][1] if ends else 0) == len(files.get(suffix, b""))


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_files_hold_every_structure(healthy: Subjects, name: str) -> None:
    found = {structure for one in healthy[name].values() for structure in by_structure(anatomy(one.files))}
    expected = {
        "file header", "b-tree page header", "cell pointers", "cells, interior table", "cells, leaf table", "cells, leaf index",
        "unused room of a page", "overflow page", "free trunk page", "free leaf page", "pointer map", "page checksum",
        "WAL header", "WAL frame, header", "WAL frame, page", "WAL frame, page checksum", "WAL frame of before, page", "bell", "turn",
    }  # fmt: skip
    assert expected <= found
    assert len(healthy[name]["in the WAL"].files["-wal"]) > 4 * len(healthy[name]["in the WAL"].files[""])
    assert "-wal" not in healthy[name]["closed"].files


def test_a_page_ends_with_its_checksum(healthy: Subjects) -> None:
    page = healthy["log"]["closed"].files[""][:PAGE]
    first = second = 0
    for at in range(0, PAGE - CHECKSUM, 8):
        first = (first + int.from_bytes(page[at : at + 4], "little") + second) & 0xFFFFFFFF
        second = (second + int.from_bytes(page[at + 4 : at + 8], "little") + first) & 0xFFFFFFFF
    assert page[-CHECKSUM:] == first.to_bytes(4, "little") + second.to_bytes(4, "little")


# ---- the campaign ----


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("name", SUBJECTS)
async def test_after_any_fault_what_is_found_is_right_or_an_error_says_what_to_do(
    healthy: Subjects, spot: Path, name: str, condition: str
) -> None:
    one = healthy[name][condition]
    found = await campaign(SUBJECTS[name], one, faults(one, SHARE, dice_of(SEED, name, condition)), spot)
    assert found.breaches == [], f"seed {SEED}, {name} {condition}"
    assert {"at open", "harmless"} <= {where for _, where in found.noticed}


async def test_a_chunk_that_memory_has_changed_is_not_taken_for_what_was_written(
    healthy: Subjects, spot: Path, place: Path
) -> None:
    one = healthy["log"]["closed"]
    changed = islice(chunk_faults(one, Path(tempfile.mkdtemp(dir=place)), dice_of(SEED, "chunks")), FAULTS // 25)
    found = await campaign(SUBJECTS["log"], one, changed, spot)
    assert found.breaches == [], f"seed {SEED}"
    assert {where for _, where in found.noticed} == {"on reading"}


# ---- what the campaign found, each by itself ----


async def only(healthy: Subjects, spot: Path, name: str, condition: str, *chosen: Fault) -> Campaign:
    """Return what comes of these faults alone."""
    return await campaign(SUBJECTS[name], healthy[name][condition], chosen, spot)


@pytest.mark.parametrize("name", SUBJECTS)
async def test_a_file_that_ends_inside_a_page_is_damaged(healthy: Subjects, spot: Path, name: str) -> None:
    files = healthy[name]["closed"].files
    size = len(files[""])
    cuts = [
        Fault("database, cut inside its last page", f"at byte {at}", {**files, "": files[""][:at]})
        for at in range(size - PAGE + 100, size, 500)
    ]
    assert (await only(healthy, spot, name, "closed", *cuts)).breaches == []


async def test_a_value_of_which_a_page_came_back_as_zeros_is_damaged(healthy: Subjects, spot: Path) -> None:
    one = healthy["store"]["closed"]
    spans = by_structure(anatomy(one.files))["overflow page"]
    zeroed = [
        Fault(
            "overflow page",
            f"zeros at {span.start}",
            {**one.files, "": one.files[""][: span.start] + bytes(PAGE) + one.files[""][span.start + PAGE :]},
        )
        for span in spans
    ]
    assert (await only(healthy, spot, "store", "closed", *zeroed)).breaches == []


@pytest.mark.parametrize("name", SUBJECTS)
async def test_a_damaged_header_says_what_to_do(healthy: Subjects, spot: Path, name: str) -> None:
    files = healthy[name]["closed"].files
    flipped = Fault("file header", "bit 0 of byte 3", {**files, "": files[""][:3] + b"K" + files[""][4:]})
    assert (await only(healthy, spot, name, "closed", flipped)).breaches == []


@pytest.mark.parametrize(("name", "text"), [("log", b"identity"), ("store", LOG.bytes)])
async def test_a_file_whose_identity_cannot_be_read_is_not_left_open(
    healthy: Subjects, spot: Path, name: str, text: bytes
) -> None:
    one = healthy[name]["closed"]
    at = one.files[""].rindex(text)
    path = laid_out({**one.files, "": one.files[""][:at] + b"~" + one.files[""][at + 1 :]}, spot, one.name)
    opening: Any = {"log": open_log, "store": open_store}[name]
    with pytest.raises(FileDamaged):
        await opening(f"sqlite:{path}", clock=ManualClock())
    left = [found for found in apsw.connections() if found.filename == str(path)]
    for found in left:
        found.close()
    assert not left


# ---- positive controls: without a check, wrong data is found ----


async def _caught(healthy: Subjects, spot: Path, name: str, condition: str, count: int) -> list[str]:
    wanted = faults(healthy[name][condition], count, dice_of(SEED, "control"))
    found = await campaign(SUBJECTS[name], healthy[name][condition], wanted, spot)
    return [breach for breach in found.breaches if ": expected" in breach]


@pytest.mark.parametrize("name", SUBJECTS)
async def test_pages_that_are_not_checked_are_caught(
    healthy: Subjects, spot: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unchecked(*arguments: Any, **named: Any) -> apsw.Connection:
        connection = connect(*arguments, **named)
        connection.pragma("checksum_verification", 0)
        return connection

    monkeypatch.setattr(database, "connect", unchecked)
    monkeypatch.setattr(damage_campaign, "HANGS_S", 0.5)  # readers may wait for what is not there
    assert await _caught(healthy, spot, name, "closed", 300)


@pytest.mark.parametrize("name", SUBJECTS)
async def test_a_bell_that_is_not_heard_at_the_opening_is_caught(
    healthy: Subjects, spot: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bell, "number", _was_never_rung)
    assert await _caught(healthy, spot, name, "in the WAL", 150)


async def test_chunks_that_are_not_checked_are_caught(
    healthy: Subjects, spot: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fitting(int):
        def __ne__(self, other: object) -> bool:
            return False

    def crc32(*_: Any) -> int:
        return Fitting(1)

    one = healthy["log"]["closed"]
    monkeypatch.setattr(codec, "zlib", SimpleNamespace(crc32=crc32))
    changed = islice(chunk_faults(one, Path(tempfile.mkdtemp(dir=place)), dice_of(SEED, "chunks")), 60)
    found = await campaign(SUBJECTS["log"], one, changed, spot)
    assert [breach for breach in found.breaches if "records of" in breach and ": expected" in breach]
