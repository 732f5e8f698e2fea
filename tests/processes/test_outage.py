"""What a handler needs is down, and comes back: a real server, a real process, and the command line beside it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.processes.premises import Numbers, Premises, by_key, end, said, text_of, until

PAYMENTS = """
import asyncio
import pathlib

from everlog import App, Delivery, Event, Retry, Topic, Tx

orders = Topic("shop.orders", key="key", partitions=4)
results = Topic("shop.results", key="key", partitions=4)


@orders.event("shop.order_placed/1")
class OrderPlaced(Event):
    key: str
    n: int


@results.event("shop.order_paid/1")
class OrderPaid(Event):
    key: str
    n: int
    before: list[int]


delivery = Delivery(start="beginning", on_error={Exception: Retry(attempts=5, first_s=0.2)})
app = App("shop", delivery=delivery)
notes = app.subscription("notes", delivery=delivery)
paid = app.state("paid/1", list[int])
noted = notes.state("noted/1", list[int])


@app.on(OrderPlaced)
async def pay(order: OrderPlaced, tx: Tx) -> OrderPaid:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(pathlib.Path("port").read_text()))
    try:
        writer.write(f"{order.key} {order.n}\\n".encode())
        if await reader.readline() != b"paid\\n":
            raise ConnectionRefusedError("the bank hangs up")
    finally:
        writer.close()
    before = await tx.get(paid, order.key, list[int]())
    tx.put(paid, order.key, [*before, order.n])
    return OrderPaid(order.key, order.n, before)


@notes.on(OrderPlaced)
async def note(order: OrderPlaced, tx: Tx) -> None:
    before = await tx.get(noted, order.key, list[int]())
    tx.put(noted, order.key, [*before, order.n])
"""

ORDER = "shop.order_placed/1"
PAYS, NOTES = "shop/shop", "shop/notes"


class Bank:
    """A server that is open or closed, always on one port, and counts what it was asked for."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[tuple[str, int]] = []
        self.refused: set[str] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
            await server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        key, n = (await reader.readline()).decode().split()
        if key not in self.refused:
            self.asked.append((key, int(n)))
            writer.write(b"paid\n")
        writer.close()


@pytest.fixture
async def bank(folder: Path) -> AsyncIterator[Bank]:
    bank = Bank()
    await bank.open()
    (folder / "port").write_text(str(bank.port))
    yield bank
    await bank.close()


@pytest.fixture
async def shop(folder: Path) -> AsyncIterator[Premises]:
    (folder / "payments.py").write_text(PAYMENTS)
    async with Premises(folder) as premises:
        yield premises


async def is_through(shop: Premises, *names: str) -> bool:
    """Nothing of these subscriptions is left to do."""
    status = await shop.status()
    return all(name in status and not status[name]["lag"] and not status[name]["outbox"] for name in names)


async def paid(shop: Premises) -> Numbers:
    """Return what was paid, as it was emitted; each emitted event agrees with the state of its key."""
    events = await shop.events("shop.results", "shop.order_paid/1")
    numbers = by_key((event["key"], event["n"]) for event in events)
    for event in events:
        assert event["before"] == numbers[event["key"]][: len(event["before"])]
        assert numbers[event["key"]][len(event["before"])] == event["n"]
    return numbers


async def attempts(shop: Premises) -> dict[str, int]:
    """Return how often each key has failed; all of them are blocked, and none is parked."""
    found = await shop.parked("shop")
    assert {one["state"] for one in found.values()} <= {"blocked"}
    return {key: one["attempts"] for key, one in found.items()}


def events(number: int, *, keys: str = "abcdefghijkl") -> list[tuple[str, int]]:
    return [(key, number) for key in keys]


async def until_paused(shop: Premises) -> None:
    async def is_paused() -> bool:
        status = await shop.status()
        return PAYS in status and status[PAYS]["paused"] is not None

    await until(is_paused)
    status = await shop.status()
    assert status[PAYS]["paused"].endswith("all failed with ConnectionRefusedError (1 process)")
    assert status[NOTES]["paused"] is None
    assert "shop is paused, and tries one event now and then: the last " in await shop.cli("status")


async def until_mended(shop: Premises, bank: Bank) -> None:
    """Open the bank, and compare what follows with what was published."""
    await bank.open()
    await until(lambda: is_through(shop, PAYS, NOTES))

    async def is_over() -> bool:
        return (await shop.status())[PAYS]["paused"] is None

    await until(is_over)
    assert "paused" not in await shop.cli("status")
    assert await shop.parked("shop") == {}
    assert await paid(shop) == shop.published
    assert by_key(bank.asked) == shop.published


async def test_what_a_handler_needs_is_down_for_a_while_and_everything_is_handled_once_and_in_order(
    shop: Premises, bank: Bank
) -> None:
    worker = await shop.run("payments")
    await shop.publish("payments", ORDER, *events(0))
    await until(lambda: is_through(shop, PAYS, NOTES), worker)
    await bank.close()
    await shop.publish("payments", ORDER, *events(1), *events(2))
    await until_paused(shop)

    # Several probes later nothing has changed, but that one more key may have been tried for the first time with each.
    before = await attempts(shop)
    failures = sum("failed attempt" in line for line in worker.lines)
    await shop.publish("payments", ORDER, *events(3), *events(0, keys="xyz"))
    await said(worker, "failed attempt", times=failures + 2)
    after = await attempts(shop)
    assert {key: after[key] for key in before} == before
    assert all(after[key] == 1 for key in after.keys() - before.keys())
    assert max(after.values()) < 5

    await until(lambda: is_through(shop, NOTES), worker)
    assert (await shop.status())[PAYS]["lag"] == 12 * 3 + 3
    assert by_key(bank.asked) == by_key(events(0))
    await until_mended(shop, bank)
    await said(worker, "goes on, since an event was handled again")
    assert "parked after" not in text_of(worker)
    await end(worker, signal.SIGTERM)


async def test_a_worker_that_is_killed_in_a_pause_pauses_again_when_it_is_started_again(shop: Premises, bank: Bank) -> None:
    await bank.close()
    worker = await shop.run("payments")
    await shop.publish("payments", ORDER, *events(0), *events(1))
    await until_paused(shop)
    for number in (2, 3):
        await end(worker, signal.SIGKILL)
        await shop.publish("payments", ORDER, *events(number))
        worker = await shop.run("payments")
        await said(worker, "paused, and nothing is parked meanwhile")
        await until_paused(shop)
        await until(lambda: is_through(shop, NOTES), worker)
    assert max((await attempts(shop)).values()) < 5
    await until_mended(shop, bank)
    await end(worker, signal.SIGTERM)


async def test_a_worker_that_is_killed_and_started_in_a_pause_counts_no_attempt(shop: Premises, bank: Bank) -> None:
    await bank.close()
    worker = await shop.run("payments")
    await shop.publish("payments", ORDER, *events(0, keys="abc"))  # no more: new ones would be tried first
    await until_paused(shop)
    before = await attempts(shop)
    await end(worker, signal.SIGKILL)
    worker = await shop.run("payments")
    await said(worker, "paused, and nothing is parked meanwhile")
    await said(worker, "failed attempt", times=3)
    after = await attempts(shop)
    assert {key: after[key] for key in before} == before


async def test_one_key_that_fails_beside_others_that_do_not_pauses_nothing(shop: Premises, bank: Bank) -> None:
    bank.refused = {"bad"}
    worker = await shop.run("payments")
    numbers = iter(range(1_000))

    async def is_parked() -> bool:
        n = next(numbers)
        await shop.publish("payments", ORDER, ("bad", n), *events(n, keys="abcde"))
        return (await shop.parked("shop")).get("bad", {}).get("state") == "parked"

    await until(is_parked, worker)
    bad = shop.published.pop("bad")

    async def rest_is_handled() -> bool:
        status = await shop.status()
        return PAYS in status and status[PAYS]["lag"] == len(bad)

    await until(rest_is_handled, worker)
    one = (await shop.parked("shop"))["bad"]
    assert (one["attempts"], one["cause"], one["behind"]) == (5, "failed", len(bad) - 1)
    assert (await shop.status())[PAYS]["paused"] is None
    assert "paused" not in text_of(worker)
    assert await paid(shop) == by_key(bank.asked) == shop.published
    await end(worker, signal.SIGTERM)
