"""Statements of a handler's own on a SQLite file: what they cannot reach, and what becomes of them when their process dies."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import apsw
import pytest

from everlog.clock import SystemClock
from everlog.drivers.sqlite.connection import load_checksums
from everlog.errors import SqlFailed, SqlRefused, SqlTimeout, StoreReadOnly
from everlog.position import Offset, TopicPartition
from everlog.record import NewRecord, StoredRecord
from everlog.store import (
    RELAY,
    Again,
    AppSpec,
    Attempt,
    Cause,
    Emitted,
    Hold,
    Incarnation,
    Landmark,
    Lease,
    Outcome,
    Progress,
    Put,
    Section,
    Skip,
    Slot,
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
LEASE_S = 600.0
COLUMNS: dict[str, str] = dict(re.findall(r"CREATE TABLE (\w+) \((?:\s*--.*\n)?(?:  -- .*\n)?\s*(\w+) ", STORE.tables))
"""Each of the store's tables, with its first column."""
TABLES = sorted(COLUMNS)
INDICES = re.findall(r"CREATE INDEX (\w+)", STORE.tables)
TRIGGERS = re.findall(r"CREATE TRIGGER (\w+)", STORE.tables)
RECORD = StoredRecord("t", 0, Offset(1), "1", "t.happened/1", b"{}", "k", "a", 0, 0, {}, 0, "", -1)


@asynccontextmanager
async def opened(path: Path | None) -> AsyncGenerator[SqliteStore]:
    store = SqliteStore(path, clock=ManualClock(), lease_s=LEASE_S)
    await store.open()
    try:
        await store.register(APP, log=uuid4())
        yield store
    finally:
        await store.aclose()


@asynccontextmanager
async def piece(store: Store, *, within_s: float = 30) -> AsyncGenerator[Section]:
    section = await store.section()
    try:
        await section.mark(within_s=within_s)
        yield section
    finally:
        await section.roll_back()


async def owning(store: Store) -> Lease:
    await store.join({"a": []}, alive_s=3_600)
    lease = await store.acquire(SLOT)
    assert lease is not None
    return lease


async def filled(store: Store) -> Lease:
    """Put a row into every table."""
    await store.reincarnate(Incarnation(2, [("t", "sent before")]))
    await store.begin("a", [Progress(TopicPartition("t", 0), Offset(0))])
    await store.start_again(Again("a", {}, rebuilds=True))
    lease = await owning(store)
    relay = await store.acquire(RELAY)
    assert relay is not None
    event = Emitted("t", NewRecord("t.happened/1", b"{}", "k", 0, "a", 0))
    unit = Unit(SLOT, None, 1, holds=[Hold("k", RECORD, Cause.FAILED, 1, "ValueError", "", None)], emits=[event])
    unit.writes = {("stock/1", '["x"]'): Put(b"1")}
    unit.timers = [Timer("n", "k", 1, event)]
    unit.skips = [Skip("k", RECORD, "ValueError")]
    await store.commit([unit], [lease], [(SLOT, Progress(TopicPartition("t", 0), Offset(5), [Offset(3)]))])
    await store.number(relay, [1])
    await store.attempt(lease, Attempt([(TopicPartition("t", 0), Offset(3))]))
    await store.request("a", "k", "redrive")
    await store.keep_landmarks([Landmark(TopicPartition("t", 0), Offset(5), 1)])
    return lease


def content(path: Path) -> Mapping[str, Sequence[tuple[object, ...]]]:
    """Return all that the store's own tables hold, but for the number of the last commit."""
    load_checksums()
    connection = apsw.Connection(str(path), vfs="cksmvfs")
    tables = [*TABLES, "sqlite_schema", "sqlite_sequence"]
    found = {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in tables if table != "head"}
    connection.close()
    return found


def names_in(folder: Path) -> list[str]:
    return sorted(found.name for found in folder.iterdir())


# ---- what a statement cannot reach ----

OWN = [
    query
    for table in TABLES
    for query in (
        f"SELECT * FROM {table}",
        f"SELECT count(*) FROM {table}",
        f"SELECT 1 FROM mine WHERE EXISTS (SELECT 1 FROM main.{table.upper()})",
        f"INSERT INTO {table} DEFAULT VALUES",
        f"INSERT INTO mine (state) SELECT 1 FROM {table}",
        f"UPDATE {table} SET {COLUMNS[table]} = 1",
        f"DELETE FROM {table}",
        f"DROP TABLE {table}",
        f"ALTER TABLE {table} ADD COLUMN more TEXT",
        f"ALTER TABLE {table} RENAME TO other",
        f"CREATE INDEX i ON {table} (1)",
        f"CREATE TRIGGER x AFTER DELETE ON {table} BEGIN SELECT 1; END",
        f"CREATE TABLE copy AS SELECT * FROM {table}",
        f"CREATE TABLE {table} (a)",
        f"CREATE VIEW {table} AS SELECT 1",
        f"EXPLAIN DELETE FROM {table}",
        f"WITH x AS (SELECT * FROM {table}) SELECT * FROM x",
    )
]
REFUSED = [
    *[f"DROP INDEX {index}" for index in INDICES],
    *[f"DROP TRIGGER {trigger}" for trigger in TRIGGERS],
    *["REINDEX", "ANALYZE", "ANALYZE mine", "DETACH main", "BEGIN", "BEGIN IMMEDIATE", "COMMIT", "END", "ROLLBACK"],
    *["SAVEPOINT a", "ROLLBACK TO piece", "ROLLBACK TO call", "RELEASE piece", "RELEASE section"],
    *["PRAGMA user_version = 7", "PRAGMA journal_mode = delete", "PRAGMA foreign_keys", "PRAGMA writable_schema = 1"],
    *["PRAGMA wal_checkpoint", "PRAGMA data_version = 1"],
    *["SELECT * FROM pragma_table_info('held')", "SELECT * FROM pragma_database_list", "SELECT * FROM pragma_user_version"],
    *["SELECT * FROM sqlite_sequence", "DELETE FROM sqlite_sequence", "UPDATE sqlite_sequence SET seq = 0"],
    *[
        "CREATE TEMP TABLE a (b)",
        "CREATE TABLE temp.a (b)",
        "CREATE TEMP VIEW a AS SELECT 1",
        "CREATE VIRTUAL TABLE temp.a USING fts5(b)",
    ],
    "CREATE TEMP TRIGGER a AFTER INSERT ON mine BEGIN SELECT 1; END",
    *["CREATE TABLE everlog_a (b)", "CREATE TABLE EVERLOG_a (b)", "CREATE INDEX everlog_i ON mine (state)"],
    *["CREATE VIEW everlog_v AS SELECT 1", "CREATE VIRTUAL TABLE everlog_f USING fts5(b)"],
    "CREATE TRIGGER everlog_t AFTER INSERT ON mine BEGIN SELECT 1; END",
    *["ALTER TABLE mine RENAME TO everlog_mine", "ALTER TABLE mine RENAME TO Everlog_mine"],
    *[
        "INSERT INTO mine (state) VALUES (7); COMMIT; INSERT INTO mine (state) VALUES (8)",
        "INSERT INTO mine (state) VALUES (7); PRAGMA foreign_keys = 1",
    ],
    *[
        "SELECT * FROM reaches",
        "UPDATE mine SET state = 7",
        "CREATE VIRTUAL TABLE f USING fts5(record, content='held'); SELECT * FROM f",
    ],
]
REFUSED_OR_FAILED = [
    *[
        "VACUUM",
        "VACUUM INTO '{folder}/copy'",
        "SELECT load_extension('x')",
        "SELECT writefile('{folder}/copy', 'x')",
        "SELECT readfile('{folder}/a.db')",
    ],
    *[
        "INSERT INTO sqlite_schema VALUES ('table', 'a', 'a', 0, '')",
        "DELETE FROM sqlite_schema",
        "UPDATE sqlite_schema SET sql = ''",
    ],
    *[
        "DROP TABLE sqlite_schema",
        "DROP TABLE sqlite_sequence",
        "CREATE TABLE sqlite_a (b)",
        "DROP INDEX sqlite_autoindex_request_1",
    ],
    *[
        "SELECT * FROM sqlite_dbpage",
        "UPDATE sqlite_dbpage SET data = zeroblob(4096)",
        "SELECT fts3_tokenizer('a', x'00')",
        "SELECT edit('a')",
    ],
    *["ALTER TABLE mine RENAME TO held", "DETACH 'main'", "ATTACH 'file:{folder}/copy?mode=rwc' AS b"],
]


async def test_nothing_of_the_stores_own_is_within_reach_of_a_statement(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    queries = [*OWN, *REFUSED, "ATTACH '{folder}/copy' AS b", "ATTACH ':memory:' AS b", *REFUSED_OR_FAILED]
    async with opened(path) as store:
        lease = await filled(store)
        async with piece(store) as section:
            await section.execute("CREATE TABLE mine (id INTEGER PRIMARY KEY, state INTEGER)", ())
            await section.execute("INSERT INTO mine (state) VALUES (1)", ())
            await section.execute("CREATE VIEW reaches AS SELECT * FROM held", ())
            await section.execute("CREATE TRIGGER reaching AFTER UPDATE ON mine BEGIN DELETE FROM held; END", ())
            await section.keep()
            await section.commit()
        before = content(path)
        assert all(before[table] for table in TABLES if table != "head")
        files = names_in(tmp_path)
        wrong: list[str] = []
        async with piece(store) as section:
            for query in queries:
                kinds = (SqlRefused, SqlFailed) if query in REFUSED_OR_FAILED else (SqlRefused,)
                try:
                    rows = await section.execute(query.format(folder=tmp_path), ())
                except kinds:
                    continue
                except SqlFailed as error:
                    wrong.append(f"{query}: failed, and is not refused: {error}")
                else:
                    wrong.append(f"{query}: gave {rows}")
            assert not wrong, "\n".join(wrong)
            assert await section.execute("SELECT state FROM mine", ()) == [(1,)]
            await section.keep()
            await section.commit()
        assert content(path) == before
        assert await store.verify() == []
        assert names_in(tmp_path) == files
        assert await store.commit([Unit(SLOT, None, 2)], [lease], []) == [Outcome.COMMITTED]


async def test_a_refusal_says_what_to_do(tmp_path: Path) -> None:
    async with opened(None) as store, piece(store) as section:
        for query, said in (
            ("SELECT * FROM held", "held is the store's own: use tx.get, tx.put"),
            ("SELECT * FROM sqlite_sequence", "sqlite_sequence numbers the store's rows too"),
            ("COMMIT", "transactions are Everlog's"),
            ("CREATE TABLE everlog_a (b)", "names that begin with everlog_ are kept"),
        ):
            with pytest.raises(SqlRefused, match=said) as caught:
                await section.execute(query, ())
            assert repr(query) in str(caught.value)


async def test_the_stores_own_statement_is_refused_though_it_was_compiled_before() -> None:
    """SQLite asks the authorizer when it compiles, and the store's statements are kept compiled."""
    async with opened(None) as store:
        await filled(store)
        async with piece(store) as section:
            for query in ("SELECT number, at_us FROM head", "DELETE FROM held WHERE id = ?", "SELECT app, log FROM meta"):
                with pytest.raises(SqlRefused):
                    await section.execute(query, (1,) if "?" in query else ())


async def test_a_table_of_ones_own_does_all_that_a_table_can() -> None:
    async with opened(None) as store, piece(store) as section:
        for query in (
            "CREATE TABLE held_by_us (id INTEGER PRIMARY KEY, state TEXT NOT NULL, held INT, head INT, request INT CHECK (request > 0))",
            "CREATE UNIQUE INDEX by_state ON held_by_us (state, lower(state))",
            "INSERT INTO held_by_us VALUES (1, 'a', 2, 3, 4) ON CONFLICT (id) DO UPDATE SET state = excluded.state RETURNING state",
            "UPDATE held_by_us SET state = 'b', held = 3 WHERE head = 3",
            "SELECT state, held, head, request, row_number() OVER (ORDER BY state) FROM held_by_us AS state",
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 5) SELECT sum(x) FROM n",
            "CREATE VIEW seen AS SELECT state FROM held_by_us",
            "SELECT * FROM seen JOIN json_each('[1]')",
            "CREATE TABLE log_of_us (at TEXT)",
            "CREATE TRIGGER noted AFTER UPDATE ON held_by_us BEGIN INSERT INTO log_of_us VALUES (datetime('now')); END",
            "UPDATE held_by_us SET state = 'c'",
            "ALTER TABLE held_by_us RENAME TO held_by_them",
            "ALTER TABLE held_by_them RENAME COLUMN head TO tail",
            "ALTER TABLE held_by_them ADD COLUMN progress TEXT DEFAULT ''",
            "ALTER TABLE held_by_them DROP COLUMN progress",
            "DELETE FROM log_of_us",
            "CREATE TABLE counted (id INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO counted DEFAULT VALUES; ALTER TABLE counted RENAME TO c; DROP TABLE c",
            "CREATE VIRTUAL TABLE words USING fts5(text)",
            "INSERT INTO words VALUES ('a word'); INSERT INTO words VALUES ('another')",
            "SELECT * FROM words WHERE words MATCH 'word'",
            "SELECT name FROM sqlite_schema WHERE name = 'words'",
            "DROP TRIGGER noted; DROP VIEW seen; DROP TABLE log_of_us; DROP INDEX by_state; DROP TABLE held_by_them; DROP TABLE words",
        ):
            await section.execute(query, ())
        await section.keep()
        await section.commit()
        assert await store.verify() == []


async def test_a_column_of_any_type_gives_back_what_was_put_in() -> None:
    values = (None, 0, -(2**63), 2**63 - 1, 1.5, float("inf"), "", "ü\0'", b"", b"\x00\xff")
    async with opened(None) as store, piece(store) as section:
        await section.execute("CREATE TABLE anything (place INTEGER PRIMARY KEY, what ANY) STRICT", ())
        for place, value in enumerate(values):
            await section.execute("INSERT INTO anything VALUES (?, ?)", (place, value))
        rows = await section.execute("SELECT what FROM anything ORDER BY place", ())
        assert [row[0] for row in rows] == list(values)
        assert [type(row[0]) for row in rows] == [type(value) for value in values]


# ---- the others ----


async def test_a_section_that_ends_by_itself_takes_nobody_along_who_was_queued_with_it(tmp_path: Path) -> None:
    """They would have been in one group of the writer thread."""
    async with opened(tmp_path / "a.db") as store:
        lease = await owning(store)
        for version in (10, 20):
            before = [asyncio.ensure_future(store.commit([Unit(SLOT, None, version + n)], [lease], [])) for n in range(3)]
            opening = asyncio.ensure_future(store.section())
            await asyncio.sleep(0)
            behind = [asyncio.ensure_future(store.commit([Unit(SLOT, None, version + n)], [lease], [])) for n in range(3, 6)]
            section = await opening
            await section.mark(within_s=30)
            await section.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)", ())
            await section.execute("INSERT INTO orders VALUES (1)", ())
            with pytest.raises(SqlRefused, match="ended the transaction"):
                await section.execute("INSERT OR ROLLBACK INTO orders VALUES (1)", ())
            with pytest.raises(SqlTimeout):
                await section.keep()
            await section.roll_back()
            assert await asyncio.gather(*before, *behind) == [[Outcome.COMMITTED]] * 6
        assert await store.verify() == []


@pytest.mark.parametrize(
    "query",
    [
        "INSERT OR ROLLBACK INTO orders VALUES (1, 'a')",
        "UPDATE OR ROLLBACK orders SET id = 1 WHERE id = 2",
        "INSERT INTO strict_orders VALUES (1)",
        "INSERT INTO guarded VALUES (1)",
    ],
)
async def test_whatever_ends_the_transaction_is_said_and_nothing_of_it_is_stored(query: str, tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        async with piece(store) as section:
            await section.execute(
                "CREATE TABLE orders (id INTEGER PRIMARY KEY, by TEXT); INSERT INTO orders VALUES (1, ''), (2, '')", ()
            )
            await section.execute("CREATE TABLE strict_orders (id INTEGER PRIMARY KEY ON CONFLICT ROLLBACK)", ())
            await section.execute("INSERT INTO strict_orders VALUES (1)", ())
            await section.execute("CREATE TABLE guarded (id)", ())
            await section.execute("CREATE TRIGGER guard BEFORE INSERT ON guarded BEGIN SELECT RAISE(ROLLBACK, 'no'); END", ())
            await section.keep()
            await section.commit()
        async with piece(store) as section:
            await section.execute("UPDATE orders SET by = 'somebody'", ())
            with pytest.raises(SqlRefused, match="write ABORT where it says ROLLBACK"):
                await section.execute(query, ())
            assert section.has_ended
            with pytest.raises(SqlRefused):
                await section.commit()
        async with piece(store) as section:
            assert await section.execute("SELECT DISTINCT by FROM orders", ()) == [("",)]


async def test_a_full_disk_ends_the_section_and_blames_no_statement(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with opened(path) as store:
        lease = await owning(store)
        writer = store._database._writer
        pages = int(str(writer.pragma("page_count")))
        writer.pragma("max_page_count", pages)
        async with piece(store) as section:
            with pytest.raises(StoreReadOnly):
                await section.execute("CREATE TABLE orders (a)", ())
            assert section.has_ended
        async with piece(store) as section:
            large = Unit(SLOT, None, 1, writes={("stock/1", '["x"]'): Put(b'"%s"' % (b"x" * 100_000))})
            with pytest.raises(StoreReadOnly):
                await section.apply([large], [lease])
        writer.pragma("max_page_count", pages + 1_000)
        async with piece(store) as section:
            await section.execute("CREATE TABLE orders (a)", ())
            await section.keep()
            await section.commit()
        assert await store.verify() == []


async def test_another_process_waits_for_no_longer_than_a_piece_may_take(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with opened(path) as one, opened(path) as two:
        await two.join({"a": []}, alive_s=3_600)
        lease = await two.acquire(SLOT)
        assert lease is not None
        for is_marked in (True, False):
            section = await one.section()
            if is_marked:
                await section.mark(within_s=0.25)
            waited: list[float] = []

            async def commit(waited: list[float] = waited) -> None:
                began_s = time.monotonic()
                await two.commit([Unit(SLOT, None, 1)], [lease], [])
                waited.append(time.monotonic() - began_s)

            # Both stores have one event loop here, and nobody takes the next step of the section.
            async with asyncio.timeout(10):
                await commit()
            assert waited[0] < 3
            assert section.has_ended
            await section.roll_back()


async def test_a_reader_of_a_file_sees_nothing_of_an_open_section(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        lease = await owning(store)
        async with piece(store) as section:
            await section.apply([Unit(SLOT, None, 1, writes={("stock/1", '["x"]'): Put(b"1")})], [lease])
            assert (await store.read([("stock/1", '["x"]')]))[0].value is None
            await section.commit()
        assert (await store.read([("stock/1", '["x"]')]))[0].value == b"1"


async def test_closing_the_store_ends_a_section_that_nobody_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with opened(path) as store:
        section = await store.section()
        await section.mark(within_s=0.1)
        await section.execute("CREATE TABLE orders (a)", ())
        waiting = asyncio.ensure_future(store.section())
        await asyncio.sleep(0)
    with suppress(Exception):
        await (await waiting).roll_back()
    with pytest.raises(SqlTimeout):
        await section.execute("SELECT 1", ())
    assert "orders" not in [row[1] for row in content(path)["sqlite_schema"]]


# ---- what outlives what ----


async def test_tables_of_ones_own_outlive_the_subscription_and_are_in_a_backup(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        async with piece(store) as section:
            await section.execute("CREATE TABLE orders (a)", ())
            await section.execute("INSERT INTO orders VALUES (7)", ())
            await section.keep()
            await section.commit()
        await store.retire("a")
        assert await store.verify() == []
        await store.backup(tmp_path / "copy.db")
    for name in ("a.db", "copy.db"):
        connection = apsw.Connection(str(tmp_path / name), vfs="cksmvfs")
        assert connection.execute("SELECT a FROM orders").fetchall() == [(7,)]
        connection.close()


@contextmanager
def writing_process(path: Path) -> Generator[subprocess.Popen[str]]:
    """Run a process that commits sections one after the other, each with a row of its own and a row of state of one number."""
    script = Path(__file__).with_name("section_process.py")
    with subprocess.Popen([sys.executable, str(script), f"sqlite:{path}"], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("lines", [1, 7, 40])
async def test_of_a_killed_process_statements_and_units_are_there_together_or_not_at_all(lines: int, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with opened(path) as store:
        async with piece(store) as section:
            await section.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)", ())
            await section.keep()
            await section.commit()
        with writing_process(path) as process:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(lines)]
            process.send_signal(signal.SIGKILL)
            process.wait()
            said += process.stdout.read().splitlines(keepends=True)
        acknowledged = [int(line) for line in said if line.endswith("\n")]
        async with piece(store) as section:
            orders = [row[0] for row in await section.execute("SELECT id FROM orders ORDER BY id", ())]
        rows = await store.scan("stock/1", "[]")
        assert sorted(int(row.value or b"") for _, row in rows) == orders
        assert set(acknowledged) <= set(orders)
        assert orders == list(range(1, len(orders) + 1))
        assert await store.verify() == []


async def test_a_store_that_is_opened_by_its_url_has_sections(tmp_path: Path) -> None:
    store = await open_store(f"sqlite:{tmp_path / 'a.db'}", clock=SystemClock())
    try:
        async with piece(store) as section:
            assert await section.execute("SELECT 1 + ?", (1,)) == [(2,)]
    finally:
        await store.aclose()
