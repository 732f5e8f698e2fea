"""Two services and what they exchange: `billing` handles orders and returns one by one and emits bills, `shipping` handles bills in batches.

Every event has a name, which is a number, and every effect is the name in a list in a row of state. Names of bills are those of the orders,
negated. So whoever reads the log and the rows at the end can say what became of each event.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, MutableMapping
from typing import Final

from everlog import App, Delivery, Event, Retry, Topic, Tx
from everlog.key import partition_of
from everlog.store import Slot

PARTITIONS: Final = 4
SHARED_EVERY: Final = 20
"""One order in so many also changes a row that handlers of other keys change."""
GROUPS: Final = 4
FAILING: Final = 0.004
"""So many handler calls fail for no reason."""

orders = Topic("shop.orders", key="key", partitions=PARTITIONS)
returns = Topic("shop.returns", key="key", partitions=PARTITIONS)
bills = Topic("shop.bills", key="key", partitions=PARTITIONS)


@orders.event("shop.ordered/1")
class Ordered(Event):
    key: str
    name: int
    article: str
    pieces: int
    price: float | None
    note: str


@returns.event("shop.returned/1")
class Returned(Event):
    key: str
    name: int


@bills.event("shop.billed/1")
class Billed(Event):
    key: str
    name: int
    text: str


RETRY: Final = Retry(attempts=1_000_000, first_s=0.01, most_s=0.05)
delivery = Delivery(start="beginning", on_error={Exception: RETRY})
billing = App("billing", delivery=delivery)
shipping = App("shipping", delivery=delivery)

Row = list[tuple[int, int]]
"""Names of events and the epochs under which they were handled, in the order of their commits."""
billed = billing.state("billed/1", Row)
shared = billing.state("shared/1", Row)
shipped = shipping.state("shipped/1", Row)

APPS: Final[Mapping[str, App]] = {"billing": billing, "shipping": shipping}
LEDGERS: Final[Mapping[str, str]] = {"billing": "billed/1", "shipping": "shipped/1"}
"""App → the state that shows its effects."""
TOPICS: Final[Mapping[str, tuple[str, ...]]] = {"billing": (orders.name, returns.name), "shipping": (bills.name,)}

dice = random.Random()
epochs: MutableMapping[Slot, int] = {}
"""The epoch of each slot that this process owns; kept by whoever runs it."""
overlaps: list[tuple[str, str, int, int]] = []
"""App, key, and two events that were handled at once."""
_running: dict[tuple[str, str], int] = {}


def group_of(key: str) -> str:
    """Return the shared row of a key. Keys begin with the window of time in which they are used: no row grows for ever."""
    window, _, number = key.partition(".")
    return f"{window}.{int(number) % GROUPS}"


def _epoch(app: str, key: str) -> int:
    return epochs.get(Slot(app, partition_of(key, PARTITIONS)), 0)


@billing.on(Ordered, Returned)
async def bill(event: Ordered | Returned, tx: Tx) -> Billed:
    other = _running.setdefault(("billing", event.key), event.name)
    if other != event.name:
        overlaps.append(("billing", event.key, other, event.name))
    try:
        effect = (event.name, _epoch("billing", event.key))
        mine = await tx.get(billed, event.key, Row())
        if dice.random() < 0.1:
            await asyncio.sleep(0.001 * dice.random())
        if event.name % SHARED_EVERY == 0:
            group = group_of(event.key)
            seen = await tx.get(shared, group, Row())
            await asyncio.sleep(0)
            tx.put(shared, group, [*seen, effect])
        if dice.random() < FAILING:
            raise RuntimeError("dice")
        tx.put(billed, event.key, [*mine, effect])
        return Billed(event.key, -event.name, "of an order" if isinstance(event, Ordered) else "of a return")
    finally:
        if _running.get(("billing", event.key)) == event.name:
            del _running["billing", event.key]


@shipping.on_batch(Billed, most=100)
async def ship(events: list[Billed], tx: Tx) -> None:
    rows: dict[str, Row] = {}
    for event in events:
        if event.key not in rows:
            rows[event.key] = list(await tx.get(shipped, event.key, Row()))
        rows[event.key].append((event.name, _epoch("shipping", event.key)))
    if dice.random() < 0.1:
        await asyncio.sleep(0.001 * dice.random())
    if dice.random() < FAILING:
        raise RuntimeError("dice")
    for key, row in rows.items():
        tx.put(shipped, key, row)
