"""`testing.tx`: one handler, called with what a test gives it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from tests.testing.shop import (
    PostOffice,
    StockRefused,
    StockReserved,
    Visited,
    count,
    counts,
    delivery,
    order,
    reserve,
    stock,
    take_in,
    tell,
    write_down,
)

from everlog import Event, testing
from everlog.errors import EventRefused, SqlFailed, SqlRefused, TxRefused


async def test_an_order_without_stock_is_refused() -> None:
    assert await reserve(order("1"), testing.tx()) == StockRefused("1", ("apple",))


async def test_a_handler_reads_what_it_is_given_and_the_test_reads_what_it_wrote() -> None:
    tx = testing.tx(state={stock: {("b", "apple"): 3, ("b", "pear"): 7}})
    assert await reserve(order("1", quantity=2), tx) == StockReserved("1")
    assert tx.read(stock, ("b", "apple")) == 1
    assert tx.rows(stock) == {("b", "apple"): 1, ("b", "pear"): 7}
    assert await tx.get(stock, ("b", "apple")) == 1
    assert tx.read(stock, ("b", "plum"), 0) == 0
    assert [key async for key, _ in tx.scan(stock, ("b",))] == [("b", "apple"), ("b", "pear")]


def test_a_plain_handler_is_called_without_an_event_loop() -> None:
    tx = testing.tx(state={stock: {("b", "apple"): 3}})
    take_in(delivery(4), tx)
    take_in(delivery(1), tx)
    assert tx.read(stock, ("b", "apple")) == 8


async def test_rows_that_were_put_and_deleted_read_so() -> None:
    tx = testing.tx(state={stock: {"a": 1, "b": 2}})
    tx.delete(stock, "a")
    tx.put(stock, "c", 3)
    assert tx.rows(stock) == {("b",): 2, ("c",): 3}


async def test_a_handler_of_batches_is_called_with_a_list() -> None:
    tx = testing.tx()
    await count([Visited("home"), Visited("cart"), Visited("home")], tx)
    assert tx.rows(counts) == {("home",): 2, ("cart",): 1}


async def test_resources_are_what_the_test_gives_and_the_key_is_the_same_each_time() -> None:
    office = PostOffice()
    await tell(StockReserved("1"), testing.tx(office))
    await tell(StockReserved("1"), testing.tx(resources=office))
    assert len(office.sent) == 2
    assert len(set(office.sent)) == 1


async def test_published_has_what_was_published_and_not_what_was_returned() -> None:
    tx = testing.tx()
    tx.publish(Visited("home"), Visited("cart"))
    tx.publish(StockReserved("1"))
    assert tx.published == [Visited("home"), Visited("cart"), StockReserved("1")]


def test_an_event_that_breaks_its_contract_is_refused_at_once() -> None:
    class Strange(Event):
        n: int

    with pytest.raises(EventRefused, match="has no contract"):
        testing.tx().publish(Strange(1))
    with pytest.raises(EventRefused, match="n"):
        testing.tx().publish(StockReserved(1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_a_handler_that_looks_at_its_record_is_given_one() -> None:
    at = datetime(2026, 2, 3, tzinfo=UTC)
    record = testing.record(order("1"), id="7", source="web", headers={"tenant": "north"}, time=at, offset=5)
    tx = testing.tx(record=record)
    assert tx.record.event == order("1")
    assert (tx.record.key, tx.record.time, tx.record.headers, tx.record.offset) == ("c", at, {"tenant": "north"}, 5)
    assert tx.idempotency_key == "test/web/7"
    assert testing.record(Visited("home"), key="k").key == "k"
    with pytest.raises(TxRefused, match=r"testing\.record"):
        _ = testing.tx().record


def test_a_batch_is_given_its_records() -> None:
    records = [testing.record(Visited("home")), testing.record(Visited("cart"), offset=1)]
    tx = testing.tx(record=records)
    assert [one.event for one in tx.records] == [Visited("home"), Visited("cart")]
    with pytest.raises(TxRefused, match="takes a batch"):
        _ = tx.record


def test_replaying_is_what_the_test_says() -> None:
    assert testing.tx(replaying=True).replaying
    assert not testing.tx().replaying


async def test_statements_run_in_a_database_of_the_tx_alone() -> None:
    tx = testing.tx()
    assert await write_down(StockReserved("1"), tx) == [Visited("fact 1")]
    with pytest.raises(SqlFailed, match="UNIQUE"):
        await write_down(StockReserved("1"), tx)
    assert await tx.sql("SELECT id, name FROM facts") == [("1", "StockReserved")]
    with pytest.raises(SqlRefused, match="PRAGMA"):
        await tx.sql("PRAGMA user_version = 3")
    with pytest.raises(SqlFailed, match="no such table"):
        await testing.tx().sql("SELECT * FROM facts")


def test_the_state_of_another_subscription_cannot_be_written_as_well() -> None:
    tx = testing.tx()
    tx.put(stock, "a", 1)
    with pytest.raises(TxRefused, match="may only read it"):
        tx.put(counts, "a", 1)


def test_a_row_of_another_type_is_refused() -> None:
    with pytest.raises(TxRefused, match="declared type"):
        testing.tx(state={stock: {"a": "many"}})
