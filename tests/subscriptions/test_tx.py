"""A handler's door to state: what it reads, against a dictionary that does the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from itertools import count
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.subscriptions.world import LastingStore

from everlog.contracts.record import Record
from everlog.errors import TxRefused
from everlog.store import AppSpec, Lease, Outcome, Put, Slot, StateKey, SubscriptionSpec, Unit, Versioned
from everlog.subscriptions.overlay import Overlay, matches
from everlog.subscriptions.sections import Exclusive
from everlog.subscriptions.state import State
from everlog.subscriptions.tx import Tx, TxContext
from everlog.testing.clock import ManualClock

numbers = State("numbers/1", int, subscription="app")
exact = State("exact/1", Decimal, subscription="app")
texts = State("texts/1", str, subscription="app")


class NoCall:
    idempotency_key = "key"

    def record(self) -> Record[Any]:
        raise AssertionError

    def records(self) -> Sequence[Record[Any]]:
        raise AssertionError

    @property
    def is_replayed(self) -> bool:
        raise NotImplementedError


def _no_statements() -> Exclusive:
    raise AssertionError


class Bench:
    """A store and an overlay; units are made by hand."""

    def __init__(self, store: LastingStore, lease: Lease) -> None:
        self.store = store
        self.lease = lease
        self.overlay = Overlay(store)
        self.versions = count(1 << 50)

    def tx(self) -> Tx:
        return Tx(NoCall(), TxContext(self.overlay, "app", None, _no_statements))

    def finish(self, tx: Tx) -> Unit:
        """Make a handler's unit and show it to later ones, as the engine does."""
        unit = Unit(self.lease.slot, None, next(self.versions))
        unit.reads, unit.scans, unit.writes = tx.reads, tx.scans, tx.writes
        self.overlay.apply(unit, tx.sums())
        tx.close()
        return unit

    async def commit(self, *units: Unit) -> Sequence[Outcome]:
        outcomes = await self.store.commit(units, [self.lease], [])
        for unit, outcome in zip(units, outcomes, strict=True):
            self.overlay.forget(unit, is_committed=outcome is Outcome.COMMITTED)
        return outcomes


async def make_bench() -> Bench:
    store = LastingStore(None, clock=ManualClock(), changed=asyncio.Event())
    await store.open()
    states = ["numbers/1", "exact/1", "texts/1"]
    await store.register(AppSpec("app", [SubscriptionSpec("app", {}, states)]), log=uuid4())
    await store.join({"app": []}, alive_s=3_600)
    lease = await store.acquire(Slot("app", 0))
    assert lease is not None
    return Bench(store, lease)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = await make_bench()
    yield made
    await made.store.really_close()


class Step(NamedTuple):
    do: str
    key: tuple[str | int, ...]
    value: int


KEYS: list[tuple[str | int, ...]] = [("a",), ("a", 1), ("a", 12), ("ab",), (1,), (12, "x")]
steps = st.lists(
    st.builds(
        Step,
        st.sampled_from(["get", "put", "add", "delete", "scan", "unit", "commit"]),
        st.sampled_from(KEYS),
        st.integers(-5, 5),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_a_handler_sees_what_was_written_before_whether_it_is_committed_or_not(plan: list[Step]) -> None:
    asyncio.run(_follow(plan))


async def _follow(plan: list[Step]) -> None:  # noqa: C901 one branch per step
    bench = await make_bench()
    model: dict[tuple[str | int, ...], int] = {}
    open_units: list[Unit] = []
    tx = bench.tx()

    async def commit() -> None:
        outcomes = await bench.commit(*open_units)
        assert set(outcomes) <= {Outcome.COMMITTED}
        open_units.clear()

    for step in plan:
        if step.do == "get":
            # A blind addition of an earlier unit is waited for: commit it, as the committer would.
            reading = asyncio.ensure_future(tx.get(numbers, step.key, None))
            for _ in range(5):
                await asyncio.sleep(0)
            if not reading.done():
                await commit()
            assert await reading == model.get(step.key)
        elif step.do == "put":
            tx.put(numbers, step.key, step.value)
            model[step.key] = step.value
        elif step.do == "add":
            tx.add(numbers, step.key, step.value)
            model[step.key] = model.get(step.key, 0) + step.value
        elif step.do == "delete":
            tx.delete(numbers, step.key)
            model.pop(step.key, None)
        elif step.do == "scan":
            for prefix in ((), step.key[:1], step.key):
                scanning = asyncio.ensure_future(_scanned(tx, prefix))
                for _ in range(5):
                    await asyncio.sleep(0)
                if not scanning.done():
                    await commit()
                assert await scanning == {key: value for key, value in model.items() if key[: len(prefix)] == prefix}
        elif step.do == "unit":
            open_units.append(bench.finish(tx))
            tx = bench.tx()
        else:
            await commit()
    open_units.append(bench.finish(tx))
    await commit()
    assert await _scanned(bench.tx(), ()) == model
    await bench.store.really_close()


async def _scanned(tx: Tx, prefix: tuple[str | int, ...]) -> dict[tuple[str | int, ...], int]:
    return {key: value async for key, value in tx.scan(numbers, prefix)}


async def test_a_unit_that_read_a_write_that_never_came_is_in_conflict(bench: Bench) -> None:
    first = bench.tx()
    first.put(numbers, "a", 1)
    never = bench.finish(first)
    second = bench.tx()
    assert await second.get(numbers, "a") == 1
    second.put(numbers, "b", 2)
    unit = bench.finish(second)
    bench.overlay.forget(never, is_committed=False)
    assert await bench.commit(unit) == [Outcome.CONFLICT]
    assert await bench.tx().get(numbers, "b") is None


async def test_what_stands_on_a_write_that_never_came_is_shown_to_nobody(bench: Bench) -> None:
    """Whoever read it would be run again, and whoever read theirs, for as long as one of them is under way."""
    first = bench.tx()
    first.put(numbers, "a", 1)
    never = bench.finish(first)
    second = bench.tx()
    second.put(numbers, "a", (await second.get(numbers, "a") or 0) + 1)
    doomed = bench.finish(second)
    bench.overlay.forget(never, is_committed=False)
    third = bench.tx()
    assert await third.get(numbers, "a") is None
    third.put(numbers, "a", 7)
    assert await bench.commit(doomed, bench.finish(third)) == [Outcome.CONFLICT, Outcome.COMMITTED]


async def test_a_scan_is_in_conflict_with_a_row_that_came_went_or_changed(bench: Bench) -> None:
    def start(key: str, value: int | None) -> Unit:
        tx = bench.tx()
        if value is None:
            tx.delete(numbers, ("a", key))
        else:
            tx.put(numbers, ("a", key), value)
        return bench.finish(tx)

    await bench.commit(start("x", 1))
    for change in (start("y", 2), start("x", 3), start("y", None)):
        bench.overlay.forget(change, is_committed=False)
        tx = bench.tx()
        await _scanned(tx, ("a",))
        tx.put(numbers, "out", 1)
        scanned = bench.finish(tx)
        assert await bench.commit(change, scanned) == [Outcome.COMMITTED, Outcome.CONFLICT]


async def test_a_scan_is_not_in_conflict_with_what_only_looks_like_its_prefix(bench: Bench) -> None:
    tx = bench.tx()
    await _scanned(tx, ("a",))
    scanned = bench.finish(tx)
    other = bench.tx()
    other.put(numbers, ("ab",), 1)
    other.put(numbers, ("b", "a"), 1)
    assert await bench.commit(bench.finish(other), scanned) == [Outcome.COMMITTED, Outcome.COMMITTED]


async def test_a_reader_of_a_blind_addition_waits_for_its_commit(bench: Bench) -> None:
    tx = bench.tx()
    tx.add(numbers, "a", 5)
    unit = bench.finish(tx)
    reading = asyncio.ensure_future(bench.tx().get(numbers, "a"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not reading.done()
    await bench.commit(unit)
    assert await reading == 5


async def test_a_later_unit_does_not_lose_its_write_when_an_earlier_one_is_settled(bench: Bench) -> None:
    units: list[Unit] = []
    for value in (1, 2, 3):
        tx = bench.tx()
        tx.put(numbers, "a", value)
        units.append(bench.finish(tx))
    await bench.commit(units[0])
    assert await bench.tx().get(numbers, "a") == 3
    await bench.commit(*units[1:])
    assert await bench.tx().get(numbers, "a") == 3


async def test_decimals_are_added_exactly_in_the_handler_in_the_overlay_and_in_the_store(bench: Bench) -> None:
    large, small = Decimal(10) ** 40, Decimal("0.1")
    tx = bench.tx()
    tx.put(exact, "a", large)
    await bench.commit(bench.finish(tx))
    tx = bench.tx()
    assert await tx.get(exact, "a") == large
    tx.add(exact, "a", small)
    tx.add(exact, "a", Decimal(10) ** 35)
    expected = Decimal("100001" + "0" * 35 + ".1")
    assert await tx.get(exact, "a") == expected
    unit = bench.finish(tx)
    assert await bench.tx().get(exact, "a") == expected
    assert await bench.commit(unit) == [Outcome.COMMITTED]
    assert await bench.tx().get(exact, "a") == expected


@pytest.mark.parametrize("amount", [True, "1", None, 1.5, float("nan"), Decimal(1)])
async def test_an_amount_of_another_type_is_refused(bench: Bench, amount: Any) -> None:
    with pytest.raises(TxRefused):
        bench.tx().add(numbers, "a", amount)


async def test_adding_to_what_is_no_number_is_refused(bench: Bench) -> None:
    tx = bench.tx()
    tx.put(texts, "a", "x")
    with pytest.raises(TxRefused):
        tx.add(texts, "a", "y")


@pytest.mark.parametrize(
    ("key", "prefix", "does"),
    [
        ('["a"]', "[]", True),
        ('["a"]', '["a"]', True),
        ('["a",1]', '["a"]', True),
        ('["ab"]', '["a"]', False),
        ("[12]", "[1]", False),
        ("[1,2]", "[1]", True),
        ("[]", "[]", True),
    ],
)
def test_a_prefix_matches_whole_elements(key: str, prefix: str, does: bool) -> None:
    assert matches(key, prefix) is does


# ---- rows that this process committed last ----


def _reads_of(bench: Bench) -> list[StateKey]:
    """Return a list that gets what the store is asked for from now on."""
    asked: list[StateKey] = []
    read = bench.store.read

    async def noting(keys: Sequence[StateKey]) -> Sequence[Versioned]:
        asked.extend(keys)
        return await read(keys)

    bench.store.read = noting  # type: ignore[method-assign]
    return asked


async def _put(bench: Bench, key: str, value: int | None) -> None:
    tx = bench.tx()
    if value is None:
        tx.delete(numbers, key)
    else:
        tx.put(numbers, key, value)
    assert await bench.commit(bench.finish(tx)) == [Outcome.COMMITTED]


async def test_a_row_that_only_this_process_writes_is_not_read_again(bench: Bench) -> None:
    bench.overlay.own("app", is_whole=True)
    asked = _reads_of(bench)
    for value in (1, None, 3):
        await _put(bench, "a", value)
        tx = bench.tx()
        assert await tx.get(numbers, "a") == value
        tx.put(numbers, "b", 1)
        assert await bench.commit(bench.finish(tx)) == [Outcome.COMMITTED]  # the version is the right one, too
    assert asked == []


async def test_a_row_that_others_may_write_is_read_from_the_store(bench: Bench) -> None:
    asked = _reads_of(bench)
    await _put(bench, "a", 1)
    assert await bench.tx().get(numbers, "a") == 1
    bench.overlay.own("app", is_whole=True)
    await _put(bench, "a", 2)
    bench.overlay.own("app", is_whole=False)  # a slot is given back
    bench.overlay.own("app", is_whole=True)
    assert await bench.tx().get(numbers, "a") == 2
    assert len(asked) == 2


async def test_a_row_whose_reader_or_writer_was_not_applied_is_read_from_the_store(bench: Bench) -> None:
    bench.overlay.own("app", is_whole=True)
    await _put(bench, "a", 1)
    await _put(bench, "b", 1)
    behind = Unit(bench.lease.slot, None, next(bench.versions))  # that the overlay knows nothing of, as if somebody else wrote
    behind.writes = {("numbers/1", '["a"]'): Put(b"5"), ("numbers/1", '["b"]'): Put(b"6")}
    await bench.store.commit([behind], [bench.lease], [])
    tx = bench.tx()
    assert await tx.get(numbers, "a") == 1
    tx.put(numbers, "b", 2)
    assert await bench.commit(bench.finish(tx)) == [Outcome.CONFLICT]
    again = bench.tx()
    assert [await again.get(numbers, key) for key in ("a", "b")] == [5, 6]


async def test_a_row_that_was_added_to_blindly_is_read_from_the_store(bench: Bench) -> None:
    bench.overlay.own("app", is_whole=True)
    await _put(bench, "a", 1)
    tx = bench.tx()
    tx.add(numbers, "a", 4)
    assert await bench.commit(bench.finish(tx)) == [Outcome.COMMITTED]
    assert await bench.tx().get(numbers, "a") == 5


async def test_a_row_is_not_kept_as_it_was_before_a_write_that_was_overtaken(bench: Bench) -> None:
    bench.overlay.own("app", is_whole=True)
    await _put(bench, "a", 1)
    first, second = bench.tx(), bench.tx()
    first.put(numbers, "a", 2)
    one = bench.finish(first)
    second.put(numbers, "a", 3)
    two = bench.finish(second)
    assert await bench.commit(one) == [Outcome.COMMITTED]
    bench.overlay.forget(two, is_committed=False)
    assert await bench.tx().get(numbers, "a") == 2


async def test_only_so_many_rows_are_kept_and_no_large_ones(bench: Bench) -> None:
    bench.overlay.own("app", is_whole=True)
    tx = bench.tx()
    for n in range(8_200):
        tx.put(numbers, n, n)
    tx.put(texts, "large", "x" * 600)
    await bench.commit(bench.finish(tx))
    assert len(bench.overlay._kept) == 8_192
    asked = _reads_of(bench)
    assert await bench.tx().get(texts, "large") == "x" * 600
    assert await bench.tx().get(numbers, 0) == 0
    assert len(asked) == 2
