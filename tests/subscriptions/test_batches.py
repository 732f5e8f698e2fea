"""Handlers of batches: what they are given, what they change together, and what a bad event in them does to the rest."""

from __future__ import annotations

import asyncio
import gc
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.subscriptions.chaos import read_rows
from tests.subscriptions.test_chaos import Chaos
from tests.subscriptions.test_engine import keys_in
from tests.subscriptions.world import PARTITIONS, Free, Left, Make, Out, Right, World, left, make_world, out

from everlog import App, Delivery, Tx
from everlog.errors import DeclarationError, PoisonAt, TxClosed, TxRefused
from everlog.store import Cause, Slot, Unit
from everlog.subscriptions.batches import Batches
from everlog.subscriptions.run import Run
from everlog.subscriptions.state import State

FAST = Delivery(start="beginning")
PARK = Delivery(start="beginning", on_error={Exception: "park"})


def number(data: bytes) -> int:
    return int(json.loads(data)["n"])


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


# ---- whatever happens ----


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_happens_the_end_is_as_if_one_event_had_followed_the_other(world: Make, seed: int) -> None:
    chaos = BatchChaos(seed)
    w = await world(chaos.app, shaky=random.Random(seed) if seed % 2 else None)
    assert await chaos.run(w, events=240, crashes=seed % 6) == []


@pytest.mark.parametrize("seed", range(100, 103))
async def test_it_is_so_in_files_too(world: Make, tmp_path: Path, seed: int) -> None:
    chaos = BatchChaos(seed)
    w = await world(chaos.app, folder=tmp_path)
    assert await chaos.run(w, events=240, crashes=3) == []


async def _any_caught(world: Make, seeds: Sequence[int]) -> bool:
    for seed in seeds:
        chaos = BatchChaos(seed)
        w = await world(chaos.app, shaky=random.Random(seed))
        try:
            if await chaos.run(w, events=240, crashes=5):
                return True
        except (TimeoutError, AssertionError):
            return True
    return False


async def test_a_batch_that_is_finished_only_after_its_commit_was_told_is_caught(
    world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two, progress that is stored would call its records unfinished again."""
    settled = Batches._settled

    async def later(self: Batches, *rest: Any) -> None:
        for _ in range(3):  # 25 of 40 seeds meet a crash in so many turns of the loop
            await asyncio.sleep(0)
        settled(self, *rest)

    tasks: list[asyncio.Task[None]] = []

    def start(self: Batches, *rest: Any) -> None:
        tasks.append(asyncio.create_task(later(self, *rest)))

    monkeypatch.setattr(Batches, "_settled", start)
    assert await _any_caught(world, range(20))


# ---- what a batch is made of ----


async def test_a_batch_has_at_most_so_many_events_in_the_order_of_the_log(world: Make) -> None:
    app = App("app", delivery=FAST)
    batches: list[list[int]] = []

    @app.on_batch(Left, most=4)
    async def handle(events: list[Left], tx: Tx) -> None:
        assert [record.event for record in tx.records] == events
        assert [record.offset for record in tx.records] == sorted(record.offset for record in tx.records)
        batches.append([event.n for event in events])

    w = await world(app)
    key, other = keys_in(0, 2)
    await w.client.publish(*[Left((key, other)[n % 2], n) for n in range(10)])
    await w.start()
    await w.settle()
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


async def test_what_was_handled_is_not_kept_in_memory(world: Make) -> None:
    app = App("app", delivery=FAST)

    @app.on_batch(Left, most=4)
    async def handle(events: list[Left]) -> None: ...

    w = await world(app)
    await w.start()
    for n in range(30):
        await w.client.publish(Left("a", n))
        await w.settle()
    gc.collect()
    assert sum(isinstance(one, Run) for one in gc.get_objects()) <= PARTITIONS


async def test_one_batch_of_a_slot_is_in_flight_and_one_of_each_other_slot(world: Make) -> None:
    app = App("app", delivery=FAST)
    gate = asyncio.Event()
    running: list[str] = []

    @app.on_batch(Left, most=2)
    async def handle(events: list[Left]) -> None:
        running.append(events[0].key)
        await gate.wait()

    w = await world(app)
    keys = [keys_in(partition, 1)[0] for partition in range(PARTITIONS)]
    await w.client.publish(*[Left(key, n) for n in range(6) for key in keys])
    await w.start()
    await w.until(lambda: len(running) == PARTITIONS)
    for _ in range(3):
        await w.tick()
    assert sorted(running) == sorted(keys)
    gate.set()
    await w.settle()
    assert len(running) == 3 * PARTITIONS


async def test_two_batch_handlers_of_a_subscription_each_have_their_own_size(world: Make) -> None:
    app = App("app", delivery=FAST)
    lefts: list[int] = []
    rights: list[int] = []

    @app.on_batch(Left, most=3)
    async def few(events: list[Left]) -> None:
        lefts.append(len(events))

    @app.on_batch(Right, most=7)
    async def many(events: list[Right]) -> None:
        rights.append(len(events))

    w = await world(app)
    (key,) = keys_in(0, 1)
    await w.client.publish(*[Left(key, n) for n in range(7)])
    await w.client.publish(*[Right(key, n) for n in range(15)])
    await w.start()
    await w.settle()
    assert (lefts, rights) == ([3, 3, 1], [7, 7, 1])


async def test_a_batch_waits_for_more_until_it_is_full_or_its_time_is_over(world: Make) -> None:
    app = App("app", delivery=FAST)
    batches: list[list[int]] = []

    @app.on_batch(Left, most=3, wait_s=2.0)
    async def handle(events: list[Left]) -> None:
        batches.append([event.n for event in events])

    w = await world(app)
    (key,) = keys_in(0, 1)
    await w.start()
    await w.client.publish(Left(key, 0))
    for _ in range(3):
        await w.tick()
    w.clock.advance(1.9)
    await w.client.publish(Left(key, 1))
    for _ in range(3):
        await w.tick()
    assert batches == []
    w.clock.advance(0.2)
    await w.until(lambda: batches == [[0, 1]])
    await w.client.publish(*[Left(key, n) for n in range(2, 6)])
    await w.until(lambda: batches[1:] == [[2, 3, 4]])  # at once
    for _ in range(3):
        await w.tick()
    w.clock.advance(2.1)
    await w.until(lambda: batches[2:] == [[5]])


async def test_a_stop_does_not_wait_for_more_events(world: Make) -> None:
    app = App("app", delivery=FAST)
    batches: list[list[int]] = []

    @app.on_batch(Left, wait_s=60.0)
    async def handle(events: list[Left]) -> None:
        batches.append([event.n for event in events])

    w = await world(app)
    await w.client.publish(Left("a", 1))
    await w.start()
    for _ in range(3):
        await w.tick()
    await w.stop()
    assert batches == []
    assert await w.unfinished() == 1
    await w.start()
    await w.settle(step_s=1)
    assert batches == [[1]]


async def test_a_batch_that_waits_for_more_leaves_out_what_cannot_be_read(world: Make) -> None:
    app = App("app", delivery=FAST)
    seen: list[int] = []

    @app.on_batch(Left, wait_s=1.0)
    async def handle(events: list[Left]) -> None:
        seen.extend(event.n for event in events)

    w = await world(app)
    broken, good = keys_in(0, 2)
    await w.append_raw(left, "test.left/1", b"{}", broken)
    await w.client.publish(Left(good, 1), Left(broken, 2), Left(good, 3))
    await w.append_raw(left, "test.left/1", b"{}", broken)
    await w.append_raw(left, "test.left/9", b"{}", good)
    await w.client.publish(Left(good, 4))
    await w.start()
    await w.settle(step_s=0.1)
    assert seen == [1, 3]
    parked = await w.store.parked()
    assert sorted((one.key, one.records, one.first.cause) for one in parked) == sorted(
        [(broken, 3, Cause.UNREADABLE), (good, 2, Cause.UNREADABLE)]
    )


async def test_events_without_a_key_come_in_batches_and_a_bad_one_holds_up_nothing(world: Make) -> None:
    app = App("app", delivery=PARK)
    done: list[int] = []

    @app.on_batch(Free)
    async def handle(events: list[Free]) -> None:
        for event in events:
            if event.n % 10 == 3:
                raise RuntimeError("bad")
        done.extend(event.n for event in events)

    w = await world(app)
    await w.client.publish(*[Free(n) for n in range(40)])
    await w.start()
    await w.settle()
    assert sorted(done) == [n for n in range(40) if n % 10 != 3]
    assert sorted(number(one.first.record.data) for one in await w.store.parked()) == [3, 13, 23, 33]


async def test_a_batch_has_neither_one_record_nor_a_key_of_its_own(world: Make) -> None:
    app = App("app", delivery=FAST)
    refused: list[str] = []

    @app.on_batch(Left)
    async def handle(events: list[Left], tx: Tx) -> None:
        for ask in (lambda: tx.record, lambda: tx.idempotency_key):
            with pytest.raises(TxRefused) as caught:
                ask()
            refused.append(str(caught.value))

    w = await world(app)
    await w.client.publish(Left("a"))
    await w.start()
    await w.settle()
    assert len(refused) == 2
    assert all("tx.records" in text for text in refused)


@pytest.mark.parametrize("first_is_batch", [False, True])
def test_a_subscription_has_batch_handlers_or_others_and_the_message_says_what_to_write(first_is_batch: bool) -> None:
    app = App("app")

    async def one(event: Any) -> None: ...

    async def many(events: list[Any]) -> None: ...

    (app.on_batch(Left)(many) if first_is_batch else app.on(Left)(one))
    with pytest.raises(DeclarationError, match=r"subscription 'app'.*a subscription of its own: @app\.subscription\("):
        (app.on(Right)(one) if first_is_batch else app.on_batch(Right)(many))
    other = app.subscription("other")
    (other.on(Right)(one) if first_is_batch else other.on_batch(Right)(many))


@pytest.mark.parametrize("wrong", [{"most": 0}, {"wait_s": -1.0}])
def test_a_batch_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    async def handle(events: list[Left]) -> None: ...

    with pytest.raises(DeclarationError, match="most of at least 1 and wait_s of at least 0"):
        App("app").on_batch(Left, **wrong)(handle)


# ---- one unit ----


@pytest.mark.parametrize("after", [False, True], ids=["before the commit", "after the commit"])
async def test_what_a_batch_changes_is_there_whole_or_not_at_all_when_the_process_dies(world: Make, after: bool) -> None:
    app = App("app", delivery=FAST)
    count = app.state("count/1", int)
    calls = 0

    @app.on_batch(Left)
    async def handle(events: list[Left], tx: Tx) -> Sequence[Out]:
        nonlocal calls
        calls += 1
        for event in events:
            tx.add(count, event.n, 1)
        return [Out(event.key, event.n) for event in events]

    w = await world(app)
    keys = keys_in(0, 5)
    await w.client.publish(*[Left(keys[n % 5], n) for n in range(50)])
    committed = 0

    async def lose_power(units: Sequence[Unit]) -> None:
        nonlocal committed
        if any(unit.writes for unit in units) and not after:
            await asyncio.Event().wait()
        if committed and after:
            await asyncio.Event().wait()
        committed += any(bool(unit.writes) for unit in units)

    w.store.before_commit = lose_power
    await w.start()
    await w.until(lambda: calls == 1 and bool(committed) == after)
    for _ in range(3):
        await w.tick()
    await w.crash()
    w.store.before_commit = None
    assert len(await w.rows("count/1")) == (50 if after else 0)
    await w.start()
    await w.settle(step_s=0.1)
    assert set((await w.rows("count/1")).values()) == {b"1"}
    assert sorted(event.n for event in await w.events(Out)) == list(range(50))
    assert calls == (1 if after else 2)


async def test_a_handler_that_changes_nothing_is_not_called_again_for_what_it_did_before_a_crash(world: Make) -> None:
    """Progress is stored while more is waiting, and not only when all is done."""
    app = App("app", delivery=FAST)
    calls: list[int] = []
    gate = asyncio.Event()

    @app.on_batch(Left, most=5)
    async def handle(events: list[Left]) -> None:
        calls.extend(event.n for event in events)
        if len(calls) == 50:
            await gate.wait()

    w = await world(app)
    (key,) = keys_in(0, 1)
    await w.client.publish(*[Left(key, n) for n in range(100)])
    await w.start()
    await w.until(lambda: len(calls) == 50)
    w.clock.advance(1)
    for _ in range(50):
        await w.tick(0.1)
    await w.crash()
    gate.set()
    await w.start()
    await w.settle(step_s=0.1)
    assert len(calls) == 105  # the one that was in hand again


async def test_batches_of_two_slots_that_change_one_row_lose_nothing(world: Make) -> None:
    app = App("app", delivery=FAST)
    total = app.state("total/1", int)
    other = app.subscription("other", delivery=FAST)
    others = other.state("others/1", int)

    @app.on_batch(Left, most=7)
    async def handle(events: list[Left], tx: Tx) -> None:
        have = await tx.get(total, "x", 0)
        for _ in range(3):
            await asyncio.sleep(0)
        tx.put(total, "x", have + len(events))

    @other.on_batch(Left, most=3)
    async def look(events: list[Left], tx: Tx) -> None:
        await tx.get(total, "x", 0)  # in conflict with the other subscription's batches
        have = await tx.get(others, "x", 0)
        await asyncio.sleep(0)
        tx.put(others, "x", have + len(events))

    w = await world(app, shaky=random.Random(1))
    await w.client.publish(*[Left(f"k{n}", n) for n in range(200)])
    await w.start()
    await w.settle(step_s=0.05)
    assert await w.rows("total/1") == {'["x"]': b"200"}
    assert await w.rows("others/1") == {'["x"]': b"200"}
    assert [one.held_records for one in (await w.store.status()).subscriptions] == [0, 0]


async def test_what_a_batch_publishes_has_the_same_ids_whatever_batch_its_cause_is_in(world: Make) -> None:
    sizes = iter([7, 3])
    ids: list[dict[str, str | None]] = []
    loose: list[set[str | None]] = []

    def newer() -> App[None]:
        app = App("app", delivery=FAST)

        @app.on_batch(Left, most=next(sizes))
        async def handle(events: list[Left], tx: Tx) -> Sequence[Out]:
            for record in tx.records:
                tx.publish(Out(record.event.key, record.event.n, "caused"), cause=record)
            return [Out(event.key, event.n, "loose") for event in events]

        return app

    w = await world(newer())
    (key,) = keys_in(0, 1)
    await w.client.publish(*[Left(key, n) for n in range(20)])
    hang = True

    async def lose_power(units: Sequence[Unit]) -> None:
        emitted = [one.record for unit in units for one in unit.emits]
        if emitted:
            ids[-1].update({r.data.decode(): r.id for r in emitted if b"caused" in r.data})
            loose[-1].update(r.id for r in emitted if b"loose" in r.data)
            if hang:
                await asyncio.Event().wait()

    w.store.before_commit = lose_power
    ids.append({})
    loose.append(set())
    await w.start()
    await w.until(lambda: len(ids[0]) == 7)
    await w.crash()
    hang = False
    ids.append({})
    loose.append(set())
    w.now(newer())
    await w.start()
    await w.settle(step_s=0.1)
    assert len(ids[1]) == 20
    assert all(ids[1][data] == id_ for data, id_ in ids[0].items())
    records = await w.records(out)
    assert len({record.id for record in records}) == len(records) == 40
    causes = {record.id: record for record in await w.records(left)}
    for record in records:
        if b"caused" in record.data:
            assert b'"n":%d' % number(causes[record.headers["causationid"]].data) in record.data


# ---- failures ----


async def _poisoned(world: Make, poison: set[int], say: str, most: int) -> int:
    """Handle 200 events of 7 keys of one slot, some of them bad; check what became of each; return the number of calls."""
    app = App("app", delivery=PARK)
    journal = app.state("journal/1", list[int])
    calls = 0

    @app.on_batch(Left, most=most)
    async def handle(events: list[Left], tx: Tx) -> None:
        nonlocal calls
        calls += 1
        for index, event in enumerate(events):
            if event.n in poison:
                if say == "index":
                    raise PoisonAt(index)
                if say == "nonsense":
                    raise PoisonAt((-1, len(events), "x", None, 1.5)[event.n % 5])  # type: ignore[arg-type]
                raise RuntimeError("bad")
            mine = await tx.get(journal, event.key, list[int]())
            tx.put(journal, event.key, [*mine, event.n])

    w = await world(app)
    keys = keys_in(0, 7)
    await w.client.publish(*[Left(keys[n % 7], n) for n in range(200)])
    await w.start()
    await w.settle(step_s=0.05)
    rows = read_rows(await w.rows("journal/1"))
    for at, key in enumerate(keys):
        mine = list(range(at, 200, 7))
        first_bad = next((i for i, n in enumerate(mine) if n in poison), len(mine))
        assert rows.get(key, []) == mine[:first_bad], key
        held = await w.store.held(Slot("app", 0), key, limit=1_000)
        assert [number(one.record.data) for one in held] == mine[first_bad:], key
    await w.stop()
    return calls


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    poison=st.sets(st.integers(0, 199), max_size=5),
    say=st.sampled_from(["nothing", "index", "nonsense"]),
    most=st.sampled_from([1, 2, 13, 64, 1_000]),
)
def test_bad_events_are_found_wherever_they_are_and_all_others_are_handled_once_in_order(
    poison: set[int], say: str, most: int
) -> None:
    async def check() -> int:
        with pytest.MonkeyPatch.context() as patch:
            worlds: list[World] = []

            async def make(app: App[Any], **options: Any) -> World:
                worlds.append(await make_world(app, patch, **options))
                return worlds[-1]

            try:
                return await _poisoned(make, poison, say, most)
            finally:
                for one in worlds:
                    await one.aclose()

    calls = asyncio.run(check())
    batches = -(-200 // most)
    per_poison = 2 * (min(most, 200).bit_length() + 1) if say != "index" else 2
    assert calls <= 2 * batches + len(poison) * per_poison + 5


async def test_the_key_is_blocked_with_the_error_that_was_said_to_be_the_cause(world: Make) -> None:
    app = App("app", delivery=Delivery(start="beginning", on_error={ValueError: "park", PoisonAt: "stop"}))

    @app.on_batch(Left)
    async def handle(events: list[Left]) -> None:
        for index, event in enumerate(events):
            if event.n == 3:
                try:
                    int("x")
                except ValueError as error:
                    raise PoisonAt(index) from error

    w = await world(app)
    keys = keys_in(0, 5)
    await w.client.publish(*[Left(key, n) for n, key in enumerate(keys)])
    await w.start()
    await w.settle()
    (parked,) = await w.store.parked()
    assert parked.key == keys[3]
    assert parked.first.error.startswith("ValueError: invalid literal")
    for _ in range(3):  # and again when it is alone
        await w.store.request("app", None, "redrive")
        for _ in range(5):
            await w.tick(0.1)
    (parked,) = await w.store.parked()
    assert parked.first.error.startswith("ValueError: invalid literal")


async def test_a_batch_past_its_time_limit_is_cancelled_and_halved(world: Make) -> None:
    app = App("app", delivery=Delivery(start="beginning", time_limit_s=8, on_error={Exception: "park"}))
    done: list[int] = []
    kept: list[Tx] = []

    @app.on_batch(Left)
    async def handle(events: list[Left], tx: Tx) -> None:
        kept.append(tx)
        if any(event.n == 5 for event in events):
            await asyncio.Event().wait()
        done.extend(event.n for event in events)

    w = await world(app)
    keys = keys_in(0, 8)
    await w.client.publish(*[Left(key, n) for n, key in enumerate(keys)])
    await w.start()
    await w.until(lambda: len(done) == 7, step_s=0.5)
    await w.settle(step_s=0.5)
    assert done == [0, 1, 2, 3, 4, 6, 7]
    (parked,) = await w.store.parked()
    assert parked.key == keys[5]
    assert parked.first.error.startswith("HandlerTimeout")
    for tx in kept:
        with pytest.raises(TxClosed):
            tx.publish(Out("a"))


async def test_a_skip_policy_takes_the_bad_event_out_of_its_batch_and_remembers_it(world: Make) -> None:
    app = App("app", delivery=Delivery(start="beginning", on_error={Exception: "skip"}))
    done: list[int] = []

    @app.on_batch(Left)
    async def handle(events: list[Left]) -> None:
        if any(event.n in (3, 4) for event in events):
            raise RuntimeError("bad")
        done.extend(event.n for event in events)

    w = await world(app)
    (key,) = keys_in(0, 1)
    await w.client.publish(*[Left(key, n) for n in range(10)])
    await w.start()
    await w.settle()
    assert done == [0, 1, 2, 5, 6, 7, 8, 9]
    assert [number(one.record.data) for one in await w.store.skipped()] == [3, 4]


async def test_a_stop_policy_stops_the_slot_at_the_bad_event(world: Make) -> None:
    app = App("app", delivery=Delivery(start="beginning", on_error={Exception: "stop"}))
    done: list[int] = []
    is_broken = True

    @app.on_batch(Left)
    async def handle(events: list[Left]) -> None:
        if is_broken and any(event.n == 3 for event in events):
            raise RuntimeError("bad")
        done.extend(event.n for event in events)

    w = await world(app)
    (key,) = keys_in(0, 1)
    await w.client.publish(*[Left(key, n) for n in range(10)])
    await w.start()
    await w.until(lambda: done == [0, 1, 2])
    for _ in range(5):
        await w.tick(0.1)
    await w.stop()
    is_broken = False
    await w.start()
    await w.settle()
    assert done == list(range(10))


async def test_an_addition_to_what_is_no_number_blames_the_event_that_made_it(world: Make) -> None:
    app = App("app", delivery=PARK)
    amounts: State[Any] = app.state("amounts/1", cast("type[Any]", int | str))

    @app.on_batch(Left)
    async def handle(events: list[Left], tx: Tx) -> None:
        for event in events:
            if event.n == 0:
                tx.put(amounts, "text", "text")
            else:
                tx.add(amounts, "text" if event.n == 5 else "x", 1)

    w = await world(app)
    keys = keys_in(0, 8)
    await w.client.publish(Left(keys[0], 0))
    await w.start()
    await w.settle()
    await w.client.publish(*[Left(key, n) for n, key in enumerate(keys) if n])
    await w.settle()
    (parked,) = await w.store.parked()
    assert parked.key == keys[5]
    assert await w.rows("amounts/1") == {'["text"]': b'"text"', '["x"]': b"6"}


# ---- slots that come and go ----


async def test_a_lost_slot_in_the_middle_of_a_batch_changes_nothing_and_disturbs_nobody(world: Make) -> None:
    """Its handler fails when the slot is this process's again, and the key is held under the new lease."""
    app = App("app", delivery=PARK)
    gates = [asyncio.Event(), asyncio.Event()]
    calls = 0
    done: list[int] = []

    @app.on_batch(Left)
    async def handle(events: list[Left]) -> None:
        nonlocal calls
        me, calls = calls, calls + 1
        if me < 2:
            await gates[me].wait()
            raise RuntimeError("bad")
        done.extend(event.n for event in events)

    w = await world(app)
    (key,) = keys_in(0, 1)
    await w.client.publish(Left(key, 0))
    await w.start()
    await w.until(lambda: calls == 1)
    engine = w.engines()["app"]
    work = engine.works[0]
    engine.lose_slot(work)
    await w.store.release(work.lease)
    await w.until(lambda: calls == 2, step_s=0.1)
    gates[1].set()
    while not await w.store.parked():
        await w.tick(0.1)
    gates[0].set()
    for _ in range(5):
        await w.tick()
    await w.client.publish(Left(key, 1))
    for _ in range(10):
        await w.tick(0.1)
    assert done == []  # it waits behind what is parked
    await w.store.request("app", None, "redrive")
    await w.until(lambda: done == [0, 1], step_s=0.1)


async def test_a_stop_in_the_middle_of_a_batch_waits_for_the_part_in_hand_and_leaves_the_rest(world: Make) -> None:
    app = App("app", delivery=PARK)
    count = app.state("count/1", int)
    gate = asyncio.Event()
    calls: list[list[int]] = []

    @app.on_batch(Left)
    async def handle(events: list[Left], tx: Tx) -> None:
        calls.append([event.n for event in events])
        if len(calls) == 1:
            raise RuntimeError("halve it")
        await gate.wait()
        for event in events:
            tx.add(count, event.n, 1)

    w = await world(app)
    (key,) = keys_in(0, 1)
    await w.client.publish(*[Left(key, n) for n in range(10)])
    await w.start()
    await w.until(lambda: len(calls) == 2)
    w.begin_stop()
    for _ in range(5):
        await w.tick()
    gate.set()
    await w.stop()
    assert calls == [list(range(10)), list(range(5))]
    assert len(await w.rows("count/1")) == 5
    assert await w.unfinished() == 5
    await w.start()
    await w.settle(step_s=0.1)
    assert calls[2:] == [list(range(5, 10))]
    assert set((await w.rows("count/1")).values()) == {b"1"}


async def test_an_app_that_crashes_in_the_middle_of_a_batch_leaves_no_task_behind(world: Make) -> None:
    app = App("app", delivery=FAST)
    entered = 0

    @app.on_batch(Left)
    async def handle(events: list[Left]) -> None:
        nonlocal entered
        entered += 1
        await asyncio.Event().wait()

    w = await world(app)
    before = asyncio.all_tasks()
    await w.client.publish(*[Left(keys_in(partition, 1)[0]) for partition in range(PARTITIONS)])
    await w.start()
    await w.until(lambda: entered == PARTITIONS)
    await w.crash()
    for _ in range(5):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() - before == set()


async def test_a_batch_that_kills_its_process_is_halved_by_its_successors_until_the_bad_event_is_alone(world: Make) -> None:
    app = App("app", delivery=PARK)
    count = app.state("count/1", int)
    died = asyncio.Event()
    deaths = 0

    @app.on_batch(Left)
    async def handle(events: list[Left], tx: Tx) -> None:
        nonlocal deaths
        if any(event.n == 11 for event in events):
            deaths += 1
            died.set()
            await asyncio.Event().wait()
        for event in events:
            tx.add(count, event.n, 1)

    w = await world(app)
    keys = keys_in(0, 7)
    await w.client.publish(*[Left(keys[n % 7], n) for n in range(28)])
    while deaths < 20:
        died.clear()
        await w.start()
        settled = asyncio.ensure_future(w.settle(step_s=0.1))
        dead = asyncio.ensure_future(died.wait())
        await asyncio.wait([settled, dead], return_when=asyncio.FIRST_COMPLETED)
        dead.cancel()
        if settled.done():
            settled.result()
            break
        settled.cancel()
        await asyncio.wait([settled])
        await w.crash()
    assert deaths <= 8  # 28, 28 under an attempt, 14, 7, 3, 1 and a little
    (held,) = await w.store.parked()
    assert (held.key, held.records, held.first.cause) == (keys[11 % 7], 3, Cause.KILLED)
    assert sorted(int(json.loads(key)[0]) for key in await w.rows("count/1")) == [
        n for n in range(28) if n < 11 or n % 7 != 11 % 7
    ]
    assert set((await w.rows("count/1")).values()) == {b"1"}
