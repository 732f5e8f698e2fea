"""The app and the publishers that the tests in this folder start as processes, and kill. Run as `python -m tests.processes.shop worker|publisher …`."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import Sequence
from typing import Any

from everlog import App, Delivery, Event, Retry, Settings, Topic, Tx
from everlog.store import Lease, Progress, Slot, Unit
from everlog.subscriptions.committer import Committer
from everlog.subscriptions.run import Run

PARTITIONS = 8
KEYS = [f"k{n}" for n in range(200)]
GROUPS = 3
LINE_EVERY = 7
"""Every so many events write a line into a table of the app's own."""
SHARE_EVERY = 10
"""Every so many events write a row that all processes write."""
PAUSE_S = 0.02
"""A publisher's pause after each batch: what is published in a test has to be handled in it."""

orders = Topic("shop.orders", key="key", partitions=PARTITIONS)
results = Topic("shop.results", key="key", partitions=PARTITIONS)


@orders.event("shop.ordered/1")
class Ordered(Event):
    key: str
    n: int
    by: str


@results.event("shop.done/1")
class Done(Event):
    key: str
    text: str


app = App(
    "shop", delivery=Delivery(start="beginning", on_error={Exception: Retry(attempts=1_000_000, first_s=0.01, most_s=0.05)})
)
journal = app.state("journal/1", list[tuple[str, int]])
totals = app.state("totals/1", int)
shared = app.state("shared/1", int)
dice = random.Random()


def group_of(key: str) -> str:
    return f"g{int(key[1:]) % GROUPS}"


@app.on(Ordered)
async def handle(event: Ordered, tx: Tx) -> Done:
    tx.add(totals, group_of(event.key), event.n + 1)
    mine = await tx.get(journal, event.key, list[tuple[str, int]]())
    if event.n % SHARE_EVERY == 0:
        tx.put(shared, group_of(event.key), await tx.get(shared, group_of(event.key), 0) + 1)
    if event.n % LINE_EVERY == 0:
        await tx.sql("CREATE TABLE IF NOT EXISTS lines (place INTEGER PRIMARY KEY, key TEXT, sender TEXT, n INTEGER)")
        await tx.sql("INSERT INTO lines (key, sender, n) VALUES (?, ?, ?)", event.key, event.by, event.n)
    if dice.random() < 0.2:
        await asyncio.sleep(0)
    if dice.random() < 0.01:
        raise RuntimeError("dice")
    tx.put(journal, event.key, [*mine, (event.by, event.n)])
    return Done(event.key, f"{event.by}:{event.n}")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def seed_a_bug(name: str) -> None:
    """Break this process on purpose, for the positive controls."""
    if name == "torn":  # progress is committed before its effects, and the process may die between
        stored = Committer._stored

        async def torn(
            self: Committer, units: Sequence[Unit], leases: Sequence[Lease], progress: Sequence[tuple[Slot, Progress]]
        ) -> Any:
            await stored(self, [], leases, progress)
            if units and dice.random() < 0.1:
                os.kill(os.getpid(), signal.SIGKILL)
            return await stored(self, units, leases, progress)

        Committer._stored = torn  # type: ignore[method-assign]
    elif name == "skip":  # a record is passed over
        made = Run.__init__

        def skipping(self: Run, *parts: Any, **named: Any) -> None:
            made(self, *parts, **named)
            if dice.random() < 0.2:
                next(self.items, None)

        Run.__init__ = skipping  # type: ignore[method-assign]


async def publish(log_url: str, name: str, seed: int, count: int) -> None:
    """Publish numbered events in batches, and say each batch that was acknowledged."""
    mine = random.Random(seed)
    async with app.connect(Settings(log_url=log_url)) as client:
        say("ready")
        n = 0

        async def sender(number: int) -> None:
            nonlocal n
            while n < count:
                batch: list[Ordered] = []
                for _ in range(mine.choice((1, 3, 10))):
                    # Each sender has keys of its own, so that the order of its calls is the order of the key.
                    key = mine.choice(KEYS[number::4])
                    batch.append(Ordered(key, n, name))
                    n += 1
                await client.publish(*batch)
                say(json.dumps([[event.key, event.n] for event in batch]))
                await asyncio.sleep(PAUSE_S)

        await asyncio.gather(*[sender(number) for number in range(4)])
    say("done")


async def work(log_url: str, store_url: str, lease_s: float) -> None:
    """Run the app until SIGTERM, and say when it is ready."""
    from everlog.runtime import run_apps

    settings = Settings(log_url=log_url, store_url=store_url, lease_s=lease_s, grace_s=5)
    await run_apps([app.declaration()], settings, on_ready=lambda _: say("ready"))


def main(arguments: Sequence[str]) -> None:
    match arguments:
        case ["worker", log_url, store_url, lease_s, bug]:
            seed_a_bug(bug)
            asyncio.run(work(log_url, store_url, float(lease_s)))
        case ["publisher", log_url, name, seed, count]:
            asyncio.run(publish(log_url, name, int(seed), int(count)))
        case _:
            raise SystemExit(f"expected worker or publisher, found {arguments}")


if __name__ == "__main__":
    main(sys.argv[1:])
