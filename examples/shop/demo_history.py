"""What the demo left behind, read from the log and from the stores: evidence for `demo_checks`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from contracts import (
    BranchForecast,
    GoodsDelivered,
    OrderCleared,
    OrderPlaced,
    OrderRouted,
    OrderSuspected,
    StockRefused,
    StockReserved,
)
from everlog import App, Client, Settings, State
from everlog.clock import SystemClock
from everlog.contracts.contract import contract_of
from everlog.position import BEGINNING
from everlog.settings import open_store
from everlog.subscriptions.state import key_of

V = TypeVar("V")

FACTS: Final = (
    OrderPlaced,
    OrderCleared,
    OrderSuspected,
    OrderRouted,
    StockReserved,
    StockRefused,
    GoodsDelivered,
    BranchForecast,
)

Fact = OrderPlaced | OrderCleared | OrderSuspected | OrderRouted | StockReserved | StockRefused | GoodsDelivered | BranchForecast
Key = tuple[str | int, ...]


@dataclass(frozen=True)
class History:
    """All facts of the log, each type's in the order of its partitions: one customer's are in the order in which they were stored."""

    placed: list[OrderPlaced] = field(default_factory=list[OrderPlaced])
    cleared: list[OrderCleared] = field(default_factory=list[OrderCleared])
    suspected: list[OrderSuspected] = field(default_factory=list[OrderSuspected])
    routed: list[OrderRouted] = field(default_factory=list[OrderRouted])
    reserved: list[StockReserved] = field(default_factory=list[StockReserved])
    refused: list[StockRefused] = field(default_factory=list[StockRefused])
    answered: list[StockReserved | StockRefused] = field(default_factory=list[StockReserved | StockRefused])
    """Reserved and refused together, in the order of the log."""
    delivered: list[GoodsDelivered] = field(default_factory=list[GoodsDelivered])
    forecasts: list[BranchForecast] = field(default_factory=list[BranchForecast])

    def add(self, fact: Fact) -> None:
        match fact:
            case OrderPlaced():
                self.placed.append(fact)
            case OrderCleared():
                self.cleared.append(fact)
            case OrderSuspected():
                self.suspected.append(fact)
            case OrderRouted():
                self.routed.append(fact)
            case StockReserved():
                self.reserved.append(fact)
                self.answered.append(fact)
            case StockRefused():
                self.refused.append(fact)
                self.answered.append(fact)
            case GoodsDelivered():
                self.delivered.append(fact)
            case BranchForecast():
                self.forecasts.append(fact)


async def read_facts(client: Client, *types: type[Any]) -> list[Any]:
    """Return every fact of some types that is in the log now. All types of their topics have to be named."""
    left = set[tuple[str, int, int]]()
    for topic in {contract_of(cls).topic.name for cls in types}:
        head = await client.log.head(topic)
        left |= {(where.topic, where.partition, int(offset)) for where, offset in head.offsets.items() if offset > BEGINNING}
    facts: list[Any] = []
    if left:
        async for record in client.follow(*types, start="beginning"):
            facts.append(record.event)
            left.discard((record.topic, record.partition, int(record.offset)))
            if not left:
                break
    return facts


async def read_history(client: Client) -> History:
    """Return all facts of the log."""
    history = History()
    for fact in await read_facts(client, *FACTS):
        history.add(fact)
    return history


async def read_state(app: App[Any], state: State[V], settings: Settings) -> dict[Key, V]:
    """Return every row of an app's state as its store has it."""
    store = await open_store(settings, app.name, clock=SystemClock())
    try:
        rows = await store.scan(state.name, "[]")
    finally:
        await store.aclose()
    return {key_of(key): state.decode(row.value) for key, row in rows if row.value is not None}


async def read_unsent(app: App[Any], settings: Settings) -> list[bytes]:
    """Return the data of the facts that an app has committed and not yet sent."""
    store = await open_store(settings, app.name, clock=SystemClock())
    try:
        return [row.emitted.record.data for row in await store.outbox(after=0, limit=1_000_000)]
    finally:
        await store.aclose()
