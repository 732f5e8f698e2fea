"""An app whose handler writes lines into a table of its own, and what stands in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.subscriptions.world import Left, Make, Out, World

from everlog import App, Delivery, Retry, Tx

TABLE = "CREATE TABLE IF NOT EXISTS lines (place INTEGER PRIMARY KEY, key TEXT, n INTEGER UNIQUE)"
INSERT = "INSERT INTO lines (key, n) VALUES (?, ?)"
AT_ONCE = Retry(attempts=3, first_s=0.01, most_s=0.01)
PARK = Retry(attempts=1)


def delivery(policy: Retry = AT_ONCE, **more: Any) -> Delivery:
    return Delivery(start="beginning", on_error={Exception: policy}, **more)


async def lines(w: World) -> list[tuple[str, int]]:
    """Return the committed rows of the table in the order in which they came."""
    section = await w.store.section()
    try:
        await section.mark(within_s=30)
        return [(key, n) for key, n in await section.execute("SELECT key, n FROM lines ORDER BY place", ())]
    finally:
        await section.roll_back()


async def with_table(w: World) -> World:
    section = await w.store.section()
    await section.mark(within_s=30)
    await section.execute(TABLE, ())
    await section.keep()
    await section.commit()
    return w


def commits(w: World) -> int:
    """Return the number of the last commit."""
    with w.store._database.reading() as connection:
        ((number,),) = connection.execute("SELECT number FROM head").fetchall()
    assert isinstance(number, int)
    return number


class Shop:
    """An app with one handler that writes a line and a row of state, and publishes."""

    def __init__(self, *, policy: Retry = AT_ONCE, **more: Any) -> None:
        self.app = App("app", delivery=delivery(policy, **more))
        self.seen = self.app.state("seen/1", int)
        self.calls: list[int] = []
        self.before: Callable[[Left, Tx], Awaitable[None]] | None = None
        self.after: Callable[[Left, Tx], Awaitable[None]] | None = None
        self.app.on(Left)(self.handle)

    async def handle(self, event: Left, tx: Tx) -> Out:
        self.calls.append(event.n)
        tx.put(self.seen, (event.key, event.n), event.n)
        if self.before is not None:
            await self.before(event, tx)
        await tx.sql(INSERT, event.key, event.n)
        if self.after is not None:
            await self.after(event, tx)
        return Out(event.key, event.n)

    async def stored(self, w: World) -> tuple[list[int], list[int], list[int]]:
        """Return the numbers in the table, in the state and among what was published, ascending."""
        rows = await w.rows("seen/1")
        return (
            sorted(n for _, n in await lines(w)),
            sorted(int(value) for value in rows.values()),
            sorted(event.n for event in await w.events(Out)),
        )


async def made(world: Make, shop: Shop, *, folder: Path | None = None) -> World:
    return await with_table(await world(shop.app, folder=folder))
