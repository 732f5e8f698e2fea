"""notify: tells the customer what became of an order.

Look at `tell`: sending is outside the store, so after a crash it can happen again. That is what `tx.idempotency_key` is for: it is the same
each time, and a mail provider that is given it sends once. `PostOffice` is such a provider, in a file.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from decimal import Decimal
from pathlib import Path

import msgspec

from contracts import OrderSuspected, StockRefused, StockReserved
from everlog import App, Delivery, Tx


class PostOffice:
    """Sends a text once per idempotency key, as long as one process uses the file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b", buffering=0)
        self._file.seek(0)
        self._sent = {msgspec.json.decode(line)["key"] for line in self._file.read().splitlines()}

    def send(self, key: str, customer_id: str, text: str) -> None:
        if key not in self._sent:
            self._sent.add(key)
            self._file.write(msgspec.json.encode({"key": key, "to": customer_id, "text": text}) + b"\n")

    def close(self) -> None:
        self._file.close()


@asynccontextmanager
async def post_office() -> AsyncGenerator[PostOffice]:
    """Open for as long as the service runs."""
    with closing(PostOffice(Path("mails.jsonl"))) as office:
        yield office


def words(fact: OrderSuspected | StockReserved | StockRefused) -> str:
    """Return what the customer reads."""
    match fact:
        case OrderSuspected():
            return f"Was this you? Order {fact.order.id} waits: {fact.reason}."
        case StockReserved():
            return f"Order {fact.order.id} over ${Decimal(fact.order.total_cents) / 100:.2f} comes from branch {fact.branch}."
        case StockRefused():
            return f"We are sorry: branch {fact.branch} lacks {len(fact.missing)} of {len(fact.order.lines)} articles of order {fact.order.id}."


notify = App("notify", lifespan=post_office, delivery=Delivery(start="beginning"))


@notify.on(OrderSuspected, StockReserved, StockRefused)
async def tell(fact: OrderSuspected | StockReserved | StockRefused, tx: Tx[PostOffice]) -> None:
    tx.resources.send(tx.idempotency_key, fact.customer_id, words(fact))
