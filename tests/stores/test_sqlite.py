"""What the store in a SQLite file does beyond the suite: other processes, other people's files, no room, damage."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from uuid import uuid4

import apsw
import pytest

from everlog.clock import Clock
from everlog.drivers.sqlite.connection import load_checksums
from everlog.errors import FileDamaged, FileNewer, FileStrange, StoreError, StoreReadOnly
from everlog.position import Offset, TopicPartition
from everlog.record import NewRecord, StoredRecord
from everlog.store import (
    RELAY,
    AppSpec,
    Attempt,
    Cause,
    Emitted,
    Hold,
    Lease,
    Outcome,
    Progress,
    Put,
    Skip,
    Slot,
    StateKey,
    Store,
    SubscriptionSpec,
    Timer,
    Unit,
)
from everlog.stores.sqlite import SqliteStore, open_store
from everlog.stores.sqlite.tables import STORE
from everlog.testing.clock import ManualClock

APP = AppSpec("a", [SubscriptionSpec("a", {"t": ["t.happened/1"]}, ["stock/1"])])
SLOT = Slot("a", 0)
KEY: StateKey = ("stock/1", '["x"]')
LEASE_S = 60.0  # so long that no heartbeat falls into a test: a process stopped inside one would hold the turn


@asynccontextmanager
async def opened(path: Path, *, clock: Clock | None = None, lease_s: float = LEASE_S) -> AsyncGenerator[Store]:
    store = await open_store(f"sqlite:{path}", clock=clock or ManualClock(), lease_s=lease_s)
    try:
        await store.register(APP, log=uuid4())
        yield store
    finally:
        await store.aclose()


async def owning(store: Store, slot: Slot = SLOT) -> Lease:
    await store.join({"a": []}, alive_s=3_600)
    lease = await store.acquire(slot)
    assert lease is not None
    return lease


def unit(version: int = 1, value: bytes = b"1") -> Unit:
    return Unit(slot=SLOT, lane=None, version=version, writes={KEY: Put(value)})


def raw(path: Path) -> apsw.Connection:
    """Open the file as nobody should: beside the store."""
    load_checksums()
    return apsw.Connection(os.fspath(path), vfs="cksmvfs")


# ---- other processes ----


@contextmanager
def owner_process(path: Path) -> Generator[subprocess.Popen[str]]:
    """Run a process that owns slot 0."""
    script = Path(__file__).with_name("worker_process.py")
    with subprocess.Popen(
        [sys.executable, str(script), f"sqlite:{path}", str(LEASE_S)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert said(process) == "owns"
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def told(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return said(process)


def clock_of_this_boot() -> ManualClock:
    return ManualClock(monotonic_s=time.monotonic())


async def test_an_owner_that_was_killed_is_replaced_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db", clock=clock_of_this_boot()) as store:
        await store.join({"a": []}, alive_s=3_600)
        with owner_process(tmp_path / "a.db") as process:
            assert await store.acquire(SLOT) is None
            process.kill()
            process.wait()
            assert (await store.survey("a")).owners == {0: None}
            assert await store.acquire(SLOT) is not None


async def test_a_zombie_is_replaced_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db", clock=clock_of_this_boot()) as store:
        await store.join({"a": []}, alive_s=3_600)
        with owner_process(tmp_path / "a.db") as process:
            process.kill()
            await asyncio.to_thread(os.waitid, os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and nobody has asked how
            assert await store.acquire(SLOT) is not None


async def test_an_owner_that_was_stopped_is_replaced_after_the_lease_and_then_fenced(tmp_path: Path) -> None:
    clock = clock_of_this_boot()
    async with opened(tmp_path / "a.db", clock=clock) as store:
        await store.join({"a": []}, alive_s=3_600)
        with owner_process(tmp_path / "a.db") as process:
            assert told(process, "commit") == "committed"
            process.send_signal(signal.SIGSTOP)
            assert await store.acquire(SLOT) is None
            clock.advance(LEASE_S + 1)
            assert await store.acquire(SLOT) is not None
            process.send_signal(signal.SIGCONT)
            assert told(process, "commit") == "fenced"


async def test_an_owner_that_was_stopped_goes_on_where_nobody_took_its_slot(tmp_path: Path) -> None:
    clock = clock_of_this_boot()
    async with opened(tmp_path / "a.db", clock=clock) as store:
        with owner_process(tmp_path / "a.db") as process:
            process.send_signal(signal.SIGSTOP)
            clock.advance(LEASE_S + 1)
            assert (await store.survey("a")).owners == {0: None}
            process.send_signal(signal.SIGCONT)
            assert told(process, "commit") == "committed"


async def test_members_of_another_boot_are_void(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with opened(path) as store:
        await owning(store)
        async with opened(path) as other:
            await other.join({"a": []}, alive_s=3_600)
            assert await other.acquire(SLOT) is None
            raw(path).execute("UPDATE member SET boot_id = 'another'")
            assert await other.acquire(SLOT) is not None


async def test_members_that_are_gone_are_forgotten_at_the_next_join(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with opened(path, clock=clock_of_this_boot()) as store:
        with owner_process(path) as process:
            process.kill()
            process.wait()
        joined = await store.join({"a": []}, alive_s=3_600)
        assert raw(path).execute("SELECT number FROM member").fetchall() == [(joined.member,)]


# ---- files ----


async def test_the_store_is_its_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er"
    async with opened(folder / "a.db") as store:
        await owning(store)
        assert folder.stat().st_mode & 0o777 == 0o700
        modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
        assert set(modes) >= {"a.db", "a.db-wal", "a.db-bell", "a.db-turn"}
        assert set(modes.values()) == {0o600}


async def test_all_names_of_a_file_are_one_store(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    async with opened(tmp_path / "real" / "a.db") as one, opened(tmp_path / "link" / "a.db") as two:
        assert one.identity == two.identity
        await one.commit([unit()], [await owning(one)], [])
        await two.wait(3_600)
        assert (await two.read([KEY]))[0].value == b"1"


async def test_each_store_in_memory_is_a_new_one(tmp_path: Path) -> None:
    stores = [await open_store("sqlite::memory:", clock=ManualClock()) for _ in range(2)]
    assert stores[0].identity != stores[1].identity
    for store in stores:
        await store.aclose()


@pytest.mark.parametrize("url", ["sqlite:", "postgres:x", "store.db", ""])
async def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="sqlite:PATH"):
        await open_store(url, clock=ManualClock())


async def test_a_strange_file_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"my diary, page 1\n" * 100)
    with pytest.raises(FileStrange, match=r"a\.db"):
        await open_store(f"sqlite:{path}", clock=ManualClock())
    assert path.read_bytes() == b"my diary, page 1\n" * 100


async def test_a_newer_store_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with opened(path):
        pass
    with raw(path) as connection:
        connection.pragma("user_version", STORE.version + 1)
    connection.close()
    before = path.read_bytes()
    with pytest.raises(FileNewer, match=f"version {STORE.version + 1}"):
        await open_store(f"sqlite:{path}", clock=ManualClock())
    assert path.read_bytes() == before


async def test_a_flipped_bit_is_found_when_its_page_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with opened(path) as store:
        await store.commit([unit(value=b'"find me, I am the value"')], [await owning(store)], [])
    body = bytearray(path.read_bytes())
    body[body.index(b"find me")] ^= 1
    path.write_bytes(body)
    store = await open_store(f"sqlite:{path}", clock=ManualClock())
    try:
        with pytest.raises(FileDamaged, match="nothing was skipped"):
            await store.read([KEY])
        (line,) = await store.verify()
        assert "damaged" in line
    finally:
        await store.aclose()


# ---- failures of the file ----


@asynccontextmanager
async def with_writer(path: Path) -> AsyncGenerator[tuple[Store, apsw.Connection]]:
    """Open a store, and hand out the connection of its writer thread to plant faults in."""
    store = SqliteStore(path, clock=ManualClock(), lease_s=LEASE_S)
    await store.open()
    try:
        await store.register(APP, log=uuid4())
        yield store, store._database._writer
    finally:
        await store.aclose()


async def test_without_room_nothing_is_stored_and_it_resumes_by_itself(tmp_path: Path) -> None:
    async with with_writer(tmp_path / "a.db") as (store, writer):
        lease = await owning(store)
        most = writer.pragma("max_page_count")
        writer.pragma("max_page_count", 1)  # SQLite raises it to what the file has already
        with pytest.raises(StoreReadOnly, match="nothing was stored"):
            await store.commit([unit(value=b'"%s"' % (b"x" * 100_000))], [lease], [])
        assert (await store.read([KEY]))[0].value is None
        writer.pragma("max_page_count", most)
        assert await store.commit([unit()], [lease], []) == [Outcome.COMMITTED]


async def test_a_failed_commit_is_reported_as_unknown(tmp_path: Path) -> None:
    async with with_writer(tmp_path / "a.db") as (store, writer):
        lease = await owning(store)
        writer.set_commit_hook(lambda: True)
        with pytest.raises(StoreError, match="whether it is stored") as caught:
            await store.commit([unit()], [lease], [])
        assert not isinstance(caught.value, StoreReadOnly)
        writer.set_commit_hook(None)
        assert await store.commit([unit(2)], [lease], []) == [Outcome.COMMITTED]


async def test_without_room_it_closes_all_the_same_and_the_lease_passes_by_itself(tmp_path: Path) -> None:
    clock = ManualClock()
    async with opened(tmp_path / "a.db", clock=clock) as other:
        store = SqliteStore(tmp_path / "a.db", clock=clock, lease_s=LEASE_S)
        await store.open()
        await owning(store)
        store._database._writer.set_commit_hook(lambda: True)
        await store.aclose()
        await other.join({"a": []}, alive_s=3_600)
        assert await other.acquire(SLOT) is None
        clock.advance(LEASE_S + 1)
        assert await other.acquire(SLOT) is not None


# ---- refusals ----


async def test_who_did_not_join_takes_no_slot(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        with pytest.raises(StoreError, match="join first"):
            await store.acquire(SLOT)


async def test_joining_twice_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        await store.join({"a": []}, alive_s=60)
        with pytest.raises(StoreError, match="already"):
            await store.join({"a": []}, alive_s=60)


async def test_names_that_were_not_registered_are_refused_and_nothing_is_stored(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        lease = await owning(store)
        with pytest.raises(StoreError, match="'typo'"):
            await store.acquire(Slot("typo", 0))
        with pytest.raises(StoreError, match="'typo/1'"):
            await store.read([("typo/1", "[]")])
        with pytest.raises(StoreError, match="'typo/1'"):
            await store.scan("typo/1", "[]")
        bad = Unit(slot=SLOT, lane=None, version=2, writes={("typo/1", "[]"): Put(b"1")})
        with pytest.raises(StoreError, match="'typo/1'"):
            await store.commit([unit(), bad], [lease], [])
        assert (await store.read([KEY]))[0].value is None


async def test_a_skip_that_was_asked_for_a_record_that_is_done_skips_no_other(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        lease = await owning(store)
        await store.commit([Unit(slot=SLOT, lane=None, version=1, holds=[hold(1), hold(2)])], [lease], [])
        (first,) = await store.held(SLOT, "k")
        await store.request("a", "k", "skip")
        (asked,) = await store.requests([SLOT])
        await store.commit([Unit(slot=SLOT, lane=None, version=2, releases=[first.id])], [lease], [])
        await store.answer(lease, asked)
        assert [held.record.offset for held in await store.held(SLOT, "k", limit=9)] == [2]
        assert not await store.requests([SLOT])


async def test_asking_twice_for_one_thing_is_asking_once(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        await store.commit([Unit(slot=SLOT, lane=None, version=1, holds=[hold(1)])], [await owning(store)], [])
        assert [await store.request("a", "k", "skip") for _ in range(2)] == [1, 1]
        assert len(await store.requests([SLOT])) == 1


def hold(offset: int) -> Hold:
    record = StoredRecord("t", 0, Offset(offset), f"{offset}", "t.happened/1", b"{}", "k", "a", 0, 0, {}, 0, "", -1)
    return Hold("k", record, Cause.FAILED, 1, "ValueError", "", None)


async def test_the_last_word_on_a_timer_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    event = Emitted("t", NewRecord("t.happened/1", b"{}", "k", 0, "a", 0))

    def timers(*set_or_removed: tuple[str, int, Emitted | None]) -> Unit:
        found = [Timer(name, "k", fires_us, emitted) for name, fires_us, emitted in set_or_removed]
        return Unit(slot=SLOT, lane=None, version=1, timers=found)

    async with opened(path) as store:
        lease = await owning(store)
        await store.commit([timers(("a", 1, event), ("b", 2, event)), timers(("a", 3, event), ("b", 0, None))], [lease], [])
        assert raw(path).execute("SELECT subscription, name, key, fires_us FROM timer").fetchall() == [("a", "a", "k", 3)]
        await store.commit([timers(("a", 0, None))], [lease], [])
        assert raw(path).execute("SELECT * FROM timer").fetchall() == []


# ---- verify ----


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("UPDATE held SET record = zeroblob(length(record))", "held: the record in row 1"),
        ("UPDATE skipped SET record = x'c1'", "skipped: the record in row 1"),
        ("UPDATE attempt SET attempt = x'c1'", "attempt: the attempt in row 1"),
        ("UPDATE holding SET records = 2", "holding: 2 records of"),
        ("UPDATE holding SET bytes = 7", "holding: 1 records of 7 bytes are counted of 'a', and 1 of"),
        ("DELETE FROM holding", "holding: 0 records of 0 bytes are counted of 'a', and 1 of"),
        (
            "INSERT INTO holding VALUES ('gone', 1, 1)",
            "holding: 1 records of 1 bytes are counted of 'gone', and 0 of 0 bytes are held",
        ),
        ("UPDATE outbox SET record = x'c1'", "outbox: the record in row 1"),
        ("UPDATE outbox SET sequence = 7", "outbox: row 1 has number 7 of t/0, where numbers up to 0 were given"),
        ("UPDATE progress SET through = 2", "progress of 'a' in t/0: the unfinished offsets are out of order or above 2"),
        ("UPDATE progress SET unfinished = x'c1'", "progress of 'a' in t/0: the unfinished offsets cannot be read"),
    ],
)
async def test_verify_says_what_is_wrong(damage: str, found: str, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with opened(path) as store:
        lease = await owning(store)
        relay = await store.acquire(RELAY)
        assert relay is not None
        event = Emitted("t", NewRecord("t.happened/1", b"{}", "k", 0, "a", 0))
        at = Progress(TopicPartition("t", 0), Offset(5), [Offset(3)])
        changes = Unit(slot=SLOT, lane=None, version=1, holds=[hold(1)], emits=[event], skips=[Skip("k", hold(1).record, "no")])
        await store.commit([changes], [lease], [(SLOT, at)])
        await store.number(relay, [1])
        await store.attempt(lease, Attempt([(at.where, Offset(3))]))
        assert list(await store.verify()) == []
        raw(path).execute(damage)
        (line,) = await store.verify()
        assert found in line
