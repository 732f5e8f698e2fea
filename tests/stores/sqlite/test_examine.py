"""Looking at a store file without opening it: whose it is, and who works on it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from uuid import UUID

import pytest

from everlog.clock import SystemClock
from everlog.drivers.process import Process, this_process
from everlog.finding import Finding, Level
from everlog.store import AppSpec, Slot, SubscriptionSpec
from everlog.stores.sqlite import SqliteStore, examine_store
from everlog.testing.clock import ManualClock

APP = AppSpec("shop", [SubscriptionSpec("shop", {"t": ["a.b/1"]}, [])])
LOG = UUID(int=3)


async def opened(path: Path, clock: ManualClock) -> SqliteStore:
    """Open a store without a heartbeat."""
    store = SqliteStore(path, clock=clock, lease_s=5.0)
    await store.open()
    return store


async def found(path: Path, clock: ManualClock, *, app: str = "shop") -> dict[str, Finding]:
    examined = await examine_store(f"sqlite:{path}", app=app, clock=clock, lease_s=5.0)
    findings = {one.name: one for one in examined.findings if one.subject == f"store of {app}"}
    assert (examined.log == LOG) == ("app" in findings and findings["app"].found != "no app has used it yet")
    return findings


async def test_a_store_says_whose_it_is(tmp_path: Path) -> None:
    clock, path = ManualClock(), tmp_path / "shop.db"
    store = await opened(path, clock)
    assert (await found(path, clock))["app"].found == "no app has used it yet"
    await store.register(APP, log=LOG)
    await store.aclose()
    findings = await found(path, clock)
    assert (findings["app"].level, findings["app"].found) == (Level.OK, "shop")
    other = (await found(path, clock, app="mail"))["app"]
    assert (other.level, other.found) == (Level.PROBLEM, "it belongs to app 'shop'")


async def test_a_member_is_at_work_until_it_is_silent_for_longer_than_its_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(_: SqliteStore) -> None:
        return None

    monkeypatch.setattr(SqliteStore, "_heartbeat", nothing)
    clock, path = ManualClock(), tmp_path / "shop.db"
    store = await opened(path, clock)
    await store.register(APP, log=LOG)
    assert (await found(path, clock))["workers"].found == "none at work"
    joined = await store.join({"shop": ["a.b/1"]}, alive_s=60)
    clock.advance(5.0)
    assert (await found(path, clock))["workers"].found == "1 at work"
    clock.advance(1.0)
    findings = await found(path, clock)
    assert findings["workers"].found == "none at work"
    silent = findings[f"member {joined.member}"]
    assert (silent.level, silent.found) == (Level.WARNING, f"process {os.getpid()} has been silent for 6 s")
    await store.aclose()
    assert [one for one in await found(path, clock) if one.startswith("member")] == []


_KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.stores.sqlite.test_examine import APP, LOG, Slot, SystemClock, SqliteStore
async def main():
    store = SqliteStore(Path(sys.argv[1]), clock=SystemClock(), lease_s=5.0)
    await store.open()
    await store.register(APP, log=LOG)
    await store.join({"shop": ["a.b/1"]}, alive_s=60)
    await store.acquire(Slot("shop", 0))
    await store.acquire(Slot("shop", 1))
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


async def test_a_dead_member_is_a_warning_while_nobody_takes_its_slots(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _KILLED, str(path))
    assert await process.wait() == -signal.SIGKILL
    examined = await examine_store(f"sqlite:{path}", app="shop", clock=SystemClock(), lease_s=5.0)
    (dead,) = [one for one in examined.findings if one.name.startswith("member")]
    assert (dead.level, dead.found) == (
        Level.WARNING,
        f"process {process.pid} has ended without giving back its 2 slots",
    )
    store = SqliteStore(path, clock=SystemClock(), lease_s=5.0)
    await store.open()
    await store.join({"shop": ["a.b/1"]}, alive_s=60)
    examined = await examine_store(f"sqlite:{path}", app="shop", clock=SystemClock(), lease_s=5.0)
    assert [one.found for one in examined.findings if one.name == "workers"] == ["1 at work"]
    assert [one for one in examined.findings if one.name.startswith("member")] == []
    await store.aclose()


async def test_a_member_of_another_boot_is_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, path = ManualClock(), tmp_path / "shop.db"
    store = await opened(path, clock)
    await store.register(APP, log=LOG)
    await store.join({"shop": ["a.b/1"]}, alive_s=60)
    await store.acquire(Slot("shop", 0))
    here = this_process()
    monkeypatch.setattr(
        "everlog.stores.sqlite.examine.this_process", lambda: Process(here.pid, here.start, "another", here.namespace)
    )
    findings = await found(path, clock)
    assert findings["workers"].found == "none at work"
    assert [one.found for name, one in findings.items() if name.startswith("member")] == [
        f"process {os.getpid()} has ended without giving back its 1 slot"
    ]
    await store.aclose()


async def test_a_store_in_memory_is_not_looked_for_on_the_disk(folder: Path) -> None:
    examined = await examine_store("sqlite::memory:", app="shop", clock=ManualClock(), lease_s=5.0)
    assert [one.found for one in examined.findings] == ["in memory, and gone with its process"]


async def test_a_missing_store_is_said_and_not_made(folder: Path) -> None:
    findings = {
        one.name: one
        for one in (await examine_store("sqlite:shop.db", app="shop", clock=ManualClock(), lease_s=5.0)).findings
        if one.subject == "store of shop"
    }
    assert (findings["file"].level, findings["file"].advice) == (
        Level.WARNING,
        "run shop, or say where its store is with --store-url",
    )
    assert not (folder / "shop.db").exists()
