"""notify: tells the customer what became of an order.

Look at `tell`: sending is outside the store, so after a crash it can happen again. That is what `tx.idempotency_key` is for: it is the same
each time, and a mail provider that is given it sends once. `post_office` is such a provider, in a file.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

import msgspec

from contracts import OrderSuspected, StockRefused, StockReserved
from everlog import App, Delivery, Tx

Send = Callable[[str, str, str], None]
MAILS = Path("mails.jsonl")


@asynccontextmanager
async def post_office() -> AsyncGenerator[Send]:
    """Lend a function that sends a text to a customer, once per idempotency key."""
    MAILS.touch()
    sent = {msgspec.json.decode(line)["key"] for line in MAILS.read_bytes().splitlines() if line.endswith(b"}")}
    with MAILS.open("ab", buffering=0) as file:

        def send(key: str, customer_id: str, text: str) -> None:
            if key not in sent:
                sent.add(key)
                file.write(msgspec.json.encode({"key": key, "to": customer_id, "text": text}) + b"\n")

        yield send


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
async def tell(fact: OrderSuspected | StockReserved | StockRefused, tx: Tx[Send]) -> None:
    tx.resources(tx.idempotency_key, fact.customer_id, words(fact))
