"""An app whose handlers do what the dice say, and what is wrong at the end, by a model that does one event after the other."""

from __future__ import annotations

import asyncio
import random
from typing import Any, cast

from tests.subscriptions.chaos import Outcome, Sent, faults, group_of, read_rows
from tests.subscriptions.world import DEADLINE_S, Left, Out, Right, World, out

from everlog import App, Delivery, Retry, Tx
from everlog.position import BEGINNING
from everlog.store import Again

RETRY = Retry(attempts=1_000_000, first_s=0.05, most_s=0.2)


class Chaos:
    """An app whose handlers do what the dice say, and a record of what ran when."""

    def __init__(self, seed: int, *, replays: bool = False) -> None:
        """Make the app.

        Args:
            seed: Of the dice.
            replays: Now and then everything is handled again from the beginning.
        """
        self.dice = random.Random(seed)
        self.replays = replays
        self.concurrency = self.dice.choice((1, 2, 5, 64))
        self.fail = self.dice.choice((0.0, 0.02, 0.1))
        self.suspend = self.dice.choice((0.0, 0.3, 0.9))
        self.share = self.dice.choice((0.1, 1.0))
        self.running: set[str] = set()
        self.overlaps: list[str] = []
        self.app = App("app", delivery=Delivery(start="beginning", concurrency=self.concurrency, on_error={Exception: RETRY}))
        self.journal = self.app.state("journal/1", list[tuple[str, int]])
        self.totals = self.app.state("totals/1", int)
        self.shared = self.app.state("shared/1", int)
        self.declare()

    def declare(self) -> None:
        """Give the app its handlers."""
        self.app.on(Left, Right)(self.handle)

    async def handle(self, event: Left | Right, tx: Tx) -> Out:
        if event.key in self.running:
            self.overlaps.append(event.key)
        self.running.add(event.key)
        try:
            return await self._handle(event, tx)
        finally:
            self.running.discard(event.key)

    async def _handle(self, event: Left | Right, tx: Tx) -> Out:
        topic = "left" if isinstance(event, Left) else "right"
        await self._maybe_suspend()
        tx.add(self.totals, group_of(event.key), event.n + 1)
        mine = await tx.get(self.journal, event.key, list[tuple[str, int]]())
        count = await tx.get(self.shared, group_of(event.key), 0)
        await self._maybe_suspend()
        if self.dice.random() < self.fail:
            raise RuntimeError("dice")
        tx.put(self.journal, event.key, [*mine, (topic, event.n)])
        tx.put(self.shared, group_of(event.key), count + 1)
        await self._maybe_suspend()
        return Out(event.key, event.n, f"{topic}:{event.n}")

    async def _maybe_suspend(self) -> None:
        if self.dice.random() < self.suspend:
            for _ in range(self.dice.choice((1, 2, 7))):
                await asyncio.sleep(0)

    async def outcome(self, w: World) -> Outcome:
        records = await w.records(out)
        events = [cast("Out", event) for event in await w.events(Out)]
        journal = read_rows(await w.rows("journal/1"))
        return Outcome(
            {key: [(topic, n) for topic, n in cast("Any", rows)] for key, rows in journal.items()},
            cast("Any", read_rows(await w.rows("totals/1"))),
            cast("Any", read_rows(await w.rows("shared/1"))),
            [(event.key, event.by) for event in events],
            [record.id for record in records],
        )

    async def run(self, w: World, *, events: int, crashes: int) -> list[str]:
        """Publish, crash and restart at random moments, and say what is wrong at the end."""
        dice = self.dice
        keys = [f"k{n}" for n in range(dice.choice((2, 8, 30)))]
        sent: list[Sent] = []
        await w.client.publish(Left(keys[0], 0))
        sent.append(Sent("left", keys[0], 0))
        bursts = max(1, crashes + 1)
        for burst in range(bursts):
            for _ in range(3):
                batch: list[Left | Right] = []
                for _ in range(events // bursts // 3):
                    key, n = dice.choice(keys), len(sent) + len(batch)
                    batch.append(Left(key, n) if dice.random() < 0.6 else Right(key, n))
                await w.client.publish(*batch)
                sent.extend(Sent("left" if isinstance(event, Left) else "right", event.key, event.n) for event in batch)
            await w.start()
            if self.replays:
                for _ in range(dice.choice((3, 30, 100, 400))):
                    await asyncio.sleep(0)
                await self.replay(w)
            if burst < bursts - 1:
                for _ in range(dice.choice((3, 30, 100, 400))):
                    await asyncio.sleep(0)
                if dice.random() < 0.3:
                    await w.stop(step_s=0.01)
                else:
                    await w.crash()
                self.running.clear()
        await self.finish(w)
        await w.stop()
        wrong = faults(sent, await self.outcome(w))
        if self.overlaps:
            wrong.append(f"two events of a key at once: {self.overlaps[:5]}")
        wrong.extend(w.store.unfinished_again)
        return wrong

    async def replay(self, w: World) -> None:
        """Have everything handled again, from the beginning and with empty state."""
        after = {one.where: BEGINNING for stood in (await w.store.status()).subscriptions for one in stood.progress}
        await w.store.start_again(Again("app", after, rebuilds=True))

    async def finish(self, w: World) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await w.settle(step_s=0.05)
