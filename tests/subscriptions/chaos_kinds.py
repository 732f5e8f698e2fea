"""The same dice in handlers of every kind: of batches, plain functions, and with statements of their own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import cast

import pytest
from tests.subscriptions.chaos import Outcome, group_of, read_rows
from tests.subscriptions.chaos_app import Chaos
from tests.subscriptions.sql_shop import INSERT, TABLE, lines, with_table
from tests.subscriptions.world import Left, Out, Right, World

from everlog import Tx
from everlog.errors import PoisonAt, SqlFailed
from everlog.subscriptions.state import State


class BatchChaos(Chaos):
    """The same, event by event, in handlers that take batches."""

    def declare(self) -> None:
        most = self.dice.choice((1, 3, 20, 1_000))
        wait_s = self.dice.choice((0.0, 0.0, 0.02))
        self.causes = self.dice.choice((0.0, 0.5, 1.0))
        if self.dice.random() < 0.5:
            self.app.on_batch(Left, Right, most=most, wait_s=wait_s)(self.handle_all)
        else:
            self.app.on_batch(Left, most=most, wait_s=wait_s)(self.handle_lefts)
            self.app.on_batch(Right, most=most + 1, wait_s=wait_s)(self.handle_rights)

    async def handle_lefts(self, events: list[Left], tx: Tx) -> Sequence[Out]:
        assert {type(event) for event in events} == {Left}
        return await self.handle_all([*events], tx)

    async def handle_rights(self, events: list[Right], tx: Tx) -> Sequence[Out]:
        assert {type(event) for event in events} == {Right}
        return await self.handle_all([*events], tx)

    async def handle_all(self, events: list[Left | Right], tx: Tx) -> Sequence[Out]:
        keys = {event.key for event in events}
        self.overlaps.extend(keys & self.running)
        self.running |= keys
        try:
            return await self._handle_all(events, tx)
        finally:
            self.running -= keys

    async def _handle_all(self, events: list[Left | Right], tx: Tx) -> Sequence[Out]:
        assert [record.event for record in tx.records] == events
        for index, (event, record) in enumerate(zip(events, tx.records, strict=True)):
            try:
                emitted = await self._handle(event, tx)
            except RuntimeError as error:
                if self.dice.random() < 0.5:
                    raise PoisonAt(self.dice.choice((index, index, -1, len(events)))) from error
                raise
            if index < len(events) - 1 or self.dice.random() < 0.5:
                tx.publish(emitted, cause=record if self.dice.random() < self.causes else None)
                continue
            return [emitted]
        return []


class PlainChaos(Chaos):
    """The same with functions that cannot read: they write down each event in a row of its own, and the order is that of what they publish."""

    seen: State[int]

    def declare(self) -> None:
        self.seen = self.app.state("seen/1", int)
        if self.dice.random() < 0.3:
            self.app.on_batch(Left, Right, most=self.dice.choice((2, 30)))(self.handle_all)
        else:
            self.app.on(Left, Right)(self.handle_one)

    def handle_all(self, events: list[Left | Right], tx: Tx) -> Sequence[Out]:
        return [self.handle_one(event, tx) for event in events]

    def handle_one(self, event: Left | Right, tx: Tx) -> Out:
        topic = "left" if isinstance(event, Left) else "right"
        tx.add(self.totals, group_of(event.key), event.n + 1)
        if self.dice.random() < self.suspend:
            for _ in range(100):
                threading.Event().wait(0)  # lets another thread run
        if self.dice.random() < self.fail:
            raise RuntimeError("dice")
        tx.add(self.shared, group_of(event.key), 1)
        tx.add(self.seen, (event.key, topic, event.n), 1)
        return Out(event.key, event.n, f"{topic}:{event.n}")

    async def outcome(self, w: World) -> Outcome:
        found = await super().outcome(w)
        counts = {key: int(value) for key, value in (await w.rows("seen/1")).items()}
        journal: dict[str, list[tuple[str, int]]] = {}
        for key, text in found.emitted:
            topic, _, n = text.partition(":")
            times = counts.pop(f'["{key}","{topic}",{n}]', 0)
            journal.setdefault(key, []).extend([(topic, int(n))] * times)
        assert not counts, f"handled and not published: {counts}"
        return found._replace(journal=journal)


class SqlChaos(Chaos):
    """Handlers that write lines of their own when the dice say so, and note in their state that they did."""

    def __init__(self, seed: int, *, replays: bool = False) -> None:
        super().__init__(seed, replays=replays)
        self.use = self.dice.choice((0.1, 0.5, 1.0))
        self.used = self.app.state("used/1", list[int])

    async def _handle(self, event: Left | Right, tx: Tx) -> Out:
        if self.dice.random() >= self.use:
            return await super()._handle(event, tx)
        early = self.dice.random() < 0.5
        if early:
            await self._write(event, tx)
        result = await super()._handle(event, tx)
        if not early:
            await self._write(event, tx)
        tx.put(self.used, event.key, [*await tx.get(self.used, event.key, list[int]()), event.n])
        if self.dice.random() < self.fail:
            raise RuntimeError("dice")
        return result

    async def _write(self, event: Left | Right, tx: Tx) -> None:
        await tx.sql(TABLE)
        await tx.sql(INSERT, event.key, event.n)
        if self.dice.random() < 0.1:
            with pytest.raises(SqlFailed):
                await tx.sql(INSERT, event.key, event.n)

    async def run(self, w: World, *, events: int, crashes: int) -> list[str]:
        await with_table(w)
        wrong = await super().run(w, events=events, crashes=crashes)
        return [*wrong, *await self._torn(w), *await w.store.verify()]

    async def _torn(self, w: World) -> list[str]:
        """Say where lines and state differ."""
        used = cast("dict[str, list[int]]", read_rows(await w.rows("used/1")))
        found: dict[str, list[int]] = {}
        for key, n in await lines(w):
            found.setdefault(key, []).append(n)
        return [
            f"{key}: {found.get(key)} {used.get(key)}" for key in found.keys() | used.keys() if found.get(key) != used.get(key)
        ]
