"""Sections: statements on tables of one's own, in one transaction with units, and nothing of the store's within their reach."""
# ruff: noqa: D103 - the name of a case is its sentence

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

from everlog.conformance.cases import case, holds, raises, same
from everlog.conformance.store.harness import (
    HERE,
    SLOT,
    STATE,
    StoreUnderTest,
    at_once,
    at_work,
    emitted,
    finished,
    let_others_run,
    number,
    numbers_in_outbox,
    opened,
    progress,
    value_of,
)
from everlog.errors import FeatureMissing, SqlFailed, SqlRefused, SqlTimeout
from everlog.position import Offset
from everlog.store import Outcome, Progress, Put, Section, Store

_LONG_S = 30.0
_BRIEFLY_S = 0.05
_TABLE = "CREATE TABLE orders (id INTEGER PRIMARY KEY, state TEXT UNIQUE)"


@asynccontextmanager
async def _piece(store: Store, *, within_s: float = _LONG_S) -> AsyncGenerator[Section]:
    """Begin a section and a piece of it; roll back what was not committed."""
    section = await store.section()
    try:
        await section.mark(within_s=within_s)
        yield section
    finally:
        await section.roll_back()


async def _made(store: Store) -> None:
    """Make the table that the cases work on."""
    async with _piece(store) as section:
        await section.execute(_TABLE, ())
        await section.keep()
        await section.commit()


async def _orders(store: Store) -> list[tuple[Any, ...]]:
    """Return the rows of the table."""
    async with _piece(store) as section:
        return await section.execute("SELECT id, state FROM orders ORDER BY id", ())


@case()
async def a_store_without_statements_refuses_a_section(harness: StoreUnderTest) -> None:
    async with opened(harness) as store:
        if store.features.sql:
            return
        with raises(FeatureMissing):
            await store.section()


@case(needs="sql")
async def statements_units_and_progress_of_a_section_are_committed_together(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        store = worker.store
        await _made(store)
        unit = worker.writing({'["a"]': Put(number(1))}, emits=[emitted(1)], finishes=finished(0))
        async with _piece(store) as section:
            await section.execute("INSERT INTO orders VALUES (1, 'new')", ())
            same(list(await section.apply([unit], [worker.leases[SLOT]])), [Outcome.COMMITTED], "the outcome")
            await section.keep()
            same(list(await section.apply([], [worker.leases[SLOT]], [(SLOT, progress(0))])), [], "the outcomes of nothing")
            await section.commit()
        same(await _orders(store), [(1, "new")], "the app's own rows")
        same(await value_of(store, '["a"]'), 1, "the row of state")
        same(await numbers_in_outbox(store), [1], "the outbox")
        same(list((await store.load(worker.leases[SLOT])).progress), [progress(0)], "the progress")


@case(needs="sql")
async def what_is_read_in_a_section_is_as_its_earlier_units_left_it(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        store, leases = worker.store, [worker.leases[SLOT]]
        first = worker.writing({'["a"]': Put(number(1)), '["b"]': Put(number(2))})
        async with _piece(store) as section:
            same([row.value for row in await section.read([(STATE, '["a"]')])], [None], "the row before")
            await section.apply([first], leases)
            (row,) = await section.read([(STATE, '["a"]')])
            same((row.value, row.version), (number(1), first.version), "the row behind the unit")
            same([key for key, _ in await section.scan(STATE, "[]")], ['["a"]', '["b"]'], "the rows under no prefix")
            if store.features.shared:
                same(await value_of(store, '["a"]'), None, "the row for others")
            reader = worker.unit("k", reads={(STATE, '["a"]'): first.version}, finishes=finished(1))
            same(list(await section.apply([reader], leases)), [Outcome.COMMITTED], "the outcome of who read it")
            await section.commit()


@case(needs="sql")
async def of_a_section_that_is_rolled_back_nothing_is_stored(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        store = worker.store
        await _made(store)
        section = await store.section()
        await section.mark(within_s=_LONG_S)
        await section.execute("INSERT INTO orders VALUES (1, 'new')", ())
        await section.apply([worker.writing({'["a"]': Put(number(1))}, emits=[emitted(1)])], [worker.leases[SLOT]])
        await section.keep()
        await section.apply([], [worker.leases[SLOT]], [(SLOT, progress(7))])
        await section.roll_back()
        await section.roll_back()
        same(await _orders(store), [], "the app's own rows")
        same(await value_of(store, '["a"]'), None, "the row of state")
        same(await numbers_in_outbox(store), [], "the outbox")
        same(list((await store.load(worker.leases[SLOT])).progress), [], "the progress")


@case(needs="sql")
async def a_piece_that_is_undone_takes_its_units_along_and_leaves_the_others(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        store, leases = worker.store, [worker.leases[SLOT]]
        await _made(store)
        async with _piece(store) as section:
            await section.execute("INSERT INTO orders VALUES (1, 'kept')", ())
            await section.apply([worker.writing({'["a"]': Put(number(1))})], leases)
            await section.keep()
            await section.mark(within_s=_LONG_S)
            await section.execute("INSERT INTO orders VALUES (2, 'undone')", ())
            await section.apply([worker.writing({'["b"]': Put(number(2))}, emits=[emitted(2)])], leases)
            await section.undo()
            await section.apply([worker.writing({'["c"]': Put(number(3))})], leases)
            await section.commit()
            await section.roll_back()  # behind the commit it does nothing
        same(await _orders(store), [(1, "kept")], "the app's own rows")
        same([await value_of(store, f'["{key}"]') for key in "abc"], [1, None, 3], "the rows of state")
        same(await numbers_in_outbox(store), [], "the outbox")


@case(needs="sql")
async def units_of_a_section_are_judged_as_those_of_a_commit_are(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        store = worker.store
        await worker.committed(worker.writing({'["a"]': Put(number(1))}))
        stale = worker.unit("k", reads={(STATE, '["a"]'): 0}, finishes=finished(1))
        after = worker.unit("k", finishes=finished(2))
        async with _piece(store) as section:
            found = list(await section.apply([stale, after], [worker.leases[SLOT]], [(SLOT, progress(2))]))
            same(found, [Outcome.CONFLICT, Outcome.DROPPED], "the outcomes")
            same(list(await section.apply([worker.unit()], [])), [Outcome.FENCED], "the outcome without a lease")
            await section.commit()
        expected = Progress(HERE, Offset(2), [Offset(1), Offset(2)])
        same(list((await store.load(worker.leases[SLOT])).progress), [expected], "the progress")


@case(needs="sql")
async def what_a_section_has_applied_is_what_its_later_units_are_judged_by(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        leases = [worker.leases[SLOT]]
        first = worker.writing({'["a"]': Put(number(1))})
        async with _piece(worker.store) as section:
            await section.apply([first], leases)
            behind = worker.writing({'["a"]': Put(number(2))}, reads={(STATE, '["a"]'): first.version})
            beside = worker.writing({'["a"]': Put(number(3))}, reads={(STATE, '["a"]'): 0})
            same(list(await section.apply([behind], leases)), [Outcome.COMMITTED], "the outcome of who read it")
            same(list(await section.apply([beside], leases)), [Outcome.CONFLICT], "the outcome of who read what was before")
            await section.commit()
        same(await value_of(worker.store, '["a"]'), 2, "the row of state")


@case(needs="sql")
async def nobody_else_commits_while_a_section_is_open(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        store = worker.store
        await _made(store)
        section = await store.section()
        committing = asyncio.ensure_future(worker.commit(worker.writing({'["a"]': Put(number(1))})))
        another = asyncio.ensure_future(store.section())
        await let_others_run()
        await section.mark(within_s=_LONG_S)
        await section.execute("INSERT INTO orders VALUES (1, 'new')", ())
        await section.keep()
        same((committing.done(), another.done()), (False, False), "whether the others got in")
        await section.commit()
        same(await at_once(committing, "a commit goes on behind the section"), [Outcome.COMMITTED], "the outcome")
        await (await at_once(another, "a section goes on behind the section")).roll_back()
        same(await _orders(store), [(1, "new")], "the app's own rows")


@case(needs="sql")
async def a_section_waits_for_what_was_queued_before(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        committing = asyncio.ensure_future(worker.commit(worker.writing({'["a"]': Put(number(1))})))
        await asyncio.sleep(0)
        async with _piece(worker.store) as section:
            late = worker.unit(reads={(STATE, '["a"]'): 0})
            same(list(await section.apply([late], [worker.leases[SLOT]])), [Outcome.CONFLICT], "the outcome of a late reader")
        same(await at_once(committing, "what was queued before is committed"), [Outcome.COMMITTED], "the outcome")


@case(needs="sql")
async def values_go_in_and_come_out_as_they_were(harness: StoreUnderTest) -> None:
    rows = [
        (1, 0, 1.5, ""),
        (2, -(2**63), float("inf"), "ü'"),
        (3, 2**63 - 1, 1e-300, "?; --"),
        (4, None, None, None),
    ]
    async with opened(harness) as store, _piece(store) as section:
        columns = "place INTEGER PRIMARY KEY, whole BIGINT, real DOUBLE PRECISION, words TEXT"
        await section.execute(f"CREATE TABLE anything ({columns})", ())
        for row in rows:
            same(await section.execute("INSERT INTO anything VALUES (?, ?, ?, ?)", row), [], "the rows of an INSERT")
        found = await section.execute("SELECT place, whole, real, words FROM anything ORDER BY place", ())
        same([tuple(row) for row in found], rows, "the values")
        types = [[type(value).__name__ for value in row] for row in rows]
        same([[type(value).__name__ for value in row] for row in found], types, "their types")
        for value in (b"", b"\x00\xff"):
            ((back,),) = await section.execute("SELECT ?", (value,))
            same((bytes(back), type(back).__name__), (value, "bytes"), "bytes")
        gone = await section.execute("DELETE FROM anything WHERE place < ? RETURNING place", (3,))
        same(sorted(gone), [(1,), (2,)], "the rows of a DELETE that returns them")


@case(needs="sql")
async def a_value_of_another_type_is_refused(harness: StoreUnderTest) -> None:
    async with opened(harness) as store, _piece(store) as section:
        for value in ([1], {"a": 1}, object(), 1j):
            with raises(SqlRefused, type(value).__name__):
                await section.execute("SELECT ?", (value,))
        for wrong in (2**63, "\ud800"):
            with raises(SqlFailed):
                await section.execute("SELECT ?", (wrong,))
        for few_or_many in ((), (1, 2)):
            with raises(SqlFailed):
                await section.execute("SELECT ?", few_or_many)
        same(await section.execute("SELECT ?", (1,)), [(1,)], "the rows afterwards")


@case(needs="sql")
async def a_statement_that_fails_changes_nothing_and_what_was_before_stands(harness: StoreUnderTest) -> None:
    async with opened(harness) as store:
        await _made(store)
        async with _piece(store) as section:
            await section.execute("INSERT INTO orders VALUES (1, 'a')", ())
            for query in (
                "INSERT INTO orders VALUES (1, 'again')",
                "INSERT INTO orders VALUES (2, 'b'), (3, 'a')",
                "INSERT INTO orders VALUES (2, 'b'); INSERT INTO orders VALUES (2, 'c')",
                "INSERT INTO orders VALUES (2, 'b'); nonsense",
                "SELECT * FROM unheard_of",
            ):
                with raises(SqlFailed):
                    await section.execute(query, ())
            await section.execute("INSERT INTO orders VALUES (4, 'd')", ())
            await section.keep()
            await section.commit()
        same(await _orders(store), [(1, "a"), (4, "d")], "the app's own rows")


@case(needs="sql")
async def transactions_are_not_a_statements_to_begin_or_end(harness: StoreUnderTest) -> None:
    controls = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT mine", "ROLLBACK TO mine", "RELEASE mine")
    async with at_work(harness, SLOT) as worker:
        store = worker.store
        await _made(store)
        async with _piece(store) as section:
            await section.execute("INSERT INTO orders VALUES (1, 'a')", ())
            for control in controls:
                for query in (control, f"INSERT INTO orders VALUES (2, 'b'); {control}", f"{control}; DELETE FROM orders"):
                    with raises(SqlRefused):
                        await section.execute(query, ())
            same(await section.execute("SELECT id FROM orders", ()), [(1,)], "the app's own rows inside")
            await section.undo()
            await section.commit()
        same(await _orders(store), [], "the app's own rows")
        await worker.committed(worker.unit())


@case(needs="sql")
async def a_statement_that_does_not_end_is_broken_off_when_its_piece_has_lasted_too_long(harness: StoreUnderTest) -> None:
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
    async with at_work(harness, SLOT) as worker:
        store = worker.store
        await _made(store)
        for query in (f"{endless} SELECT count(*) FROM n", f"{endless} INSERT INTO orders SELECT x, x FROM n"):
            began_s = time.monotonic()
            async with _piece(store, within_s=_BRIEFLY_S) as section:
                await section.execute("INSERT INTO orders VALUES (-1, 'a')", ())
                with raises(SqlTimeout):
                    await section.execute(query, ())
            holds(time.monotonic() - began_s < 5, f"it lasted for {time.monotonic() - began_s:.1f} s")
            same(await _orders(store), [], "the app's own rows")
        await worker.committed(worker.unit())


@case(needs="sql")
async def of_a_piece_that_keeps_the_store_for_too_long_nothing_is_stored(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        store = worker.store
        await _made(store)
        async with _piece(store, within_s=_BRIEFLY_S) as section:
            await section.execute("INSERT INTO orders VALUES (1, 'a')", ())
            _block_the_loop(store)
            holds(section.has_ended, "expected the section to have ended")
            with raises(SqlTimeout):
                await section.apply([worker.writing({'["a"]': Put(number(1))})], [worker.leases[SLOT]])
            with suppress(SqlTimeout):
                await section.commit()
        same(await _orders(store), [], "the app's own rows")
        same(await value_of(store, '["a"]'), None, "the row of state")


def _block_the_loop(store: Store) -> None:
    """Keep the event loop busy for long enough to be noticed."""
    until_s = time.monotonic() + 20 * _BRIEFLY_S
    while time.monotonic() < until_s:
        store.turned()


@case(needs="sql")
async def who_is_cancelled_while_it_waits_for_a_section_keeps_nobody_out(harness: StoreUnderTest) -> None:
    async with at_work(harness, SLOT) as worker:
        for turns in range(4):
            waiting = asyncio.ensure_future(worker.store.section())
            for _ in range(turns):
                await asyncio.sleep(0)
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                await (await waiting).roll_back()
        began_s = time.monotonic()
        await at_once(worker.commit(worker.unit()), "a commit waits for no section that nobody has")
        holds(time.monotonic() - began_s < 1.5, "a commit waited for sections that nobody has")


@case(needs="sql")
async def rows_of_ones_own_last_with_the_store(harness: StoreUnderTest) -> None:
    async with opened(harness) as store:
        await _made(store)
        async with _piece(store) as section:
            await section.execute("INSERT INTO orders VALUES (1, 'a')", ())
            await section.keep()
            await section.commit()
        if store.features.durability == "memory":
            return
    async with opened(harness) as store:
        same(await _orders(store), [(1, "a")], "the app's own rows")
        same(list(await store.verify()), [], "what is wrong")
