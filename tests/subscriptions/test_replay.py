"""Replays: everything handled again over empty state, nothing published twice, whatever happens meanwhile."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from tests.subscriptions.chaos import read_rows
from tests.subscriptions.chaos_app import Chaos
from tests.subscriptions.chaos_kinds import BatchChaos, PlainChaos
from tests.subscriptions.world import Left, Make, Out, Right, World, left

from everlog import App, Delivery, Event, Tx
from everlog.errors import CommandRefused, DeclarationError, StartUndecided
from everlog.position import BEGINNING, Offset, TopicPartition
from everlog.store import Again, Muted
from everlog.subscriptions import call as call_module
from everlog.subscriptions.repeating import plan_repetition
from everlog.subscriptions.report import read_reports

FAST = Delivery(start="beginning")
PARK = Delivery(start="beginning", on_error={Exception: "park"})
KINDS: Sequence[type[Chaos]] = (Chaos, BatchChaos, PlainChaos)


async def begin_again(w: World, *, rebuilds: bool = True, after: Offset = BEGINNING, keep_state: bool = False) -> int:
    stood = (await w.store.status()).subscriptions[0].progress
    again = Again("app", {one.where: min(after, one.through) for one in stood}, rebuilds=rebuilds, keep_state=keep_state)
    return await w.store.start_again(again)


# ---- whatever happens ----


@pytest.mark.parametrize(("kind", "seed"), [(kind, seed) for kind in KINDS for seed in range(30)])
async def test_replays_end_as_if_every_event_had_been_handled_once(world: Make, kind: type[Chaos], seed: int) -> None:
    chaos = kind(seed, replays=True)
    w = await world(chaos.app, shaky=random.Random(seed) if seed % 2 else None)
    assert await chaos.run(w, events=180, crashes=seed % 6) == []


async def _any_caught(world: Make, kind: type[Chaos], seeds: Sequence[int]) -> bool:
    for seed in seeds:
        chaos = kind(seed, replays=True)
        w = await world(chaos.app, shaky=random.Random(seed))
        try:
            if await chaos.run(w, events=180, crashes=3):
                return True
        except (TimeoutError, AssertionError):
            return True
    return False


async def test_publishing_again_in_a_replay_is_caught(world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_module.Call, "is_replayed", property(lambda self: False))
    assert await _any_caught(world, Chaos, range(3))


async def test_muting_what_was_never_published_is_caught(world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was in flight or held when the replay began has published nothing."""

    def has(self: Muted, offset: Offset, type_: str) -> bool:
        return offset <= self.through

    monkeypatch.setattr(Muted, "has", has)
    assert await _any_caught(world, Chaos, range(10))


# ---- what it does ----


@left.event("test.left.second/1")
class Second(Event):
    key: str
    n: int = 0


class Counter:
    """An app that counts and publishes, and says what it saw."""

    def __init__(self, *, by: int = 1, delivery: Delivery = FAST) -> None:
        self.app = App("app", delivery=delivery)
        self.total = self.app.state("total/1", int)
        self.replayed: list[bool] = []
        self.failing: set[int] = set()
        self.by = by
        self.app.on(Left)(self.handle)

    async def handle(self, event: Left, tx: Tx) -> Out:
        self.replayed.append(tx.replaying)
        if event.n in self.failing:
            raise ValueError(event.n)
        tx.put(self.total, "all", await tx.get(self.total, "all", 0) + self.by)
        return Out(event.key, event.n)

    async def state(self, w: World) -> Any:
        return read_rows(await w.rows("total/1"))


async def test_a_replay_with_new_code_rebuilds_the_state_and_publishes_only_what_is_new(world: Make) -> None:
    old, new = Counter(), Counter(by=10)
    w = await world(old.app)
    await w.client.publish(*[Left("a", n) for n in range(3)])
    await w.start()
    await w.settle()
    await w.stop()
    assert await begin_again(w) == 2
    w.now(new.app)
    await w.client.publish(Left("a", 3))
    await w.start()
    await w.settle()
    assert await new.state(w) == {"all": 40}
    assert new.replayed == [True, True, True, False]
    assert sorted(event.n for event in await w.events(Out)) == [0, 1, 2, 3]


async def test_a_replay_begins_beside_a_worker_that_goes_on_and_live_events_follow(world: Make) -> None:
    counter = Counter()
    w = await world(counter.app)
    await w.client.publish(*[Left(f"k{n}", n) for n in range(50)])
    await w.start()
    await w.settle()
    await begin_again(w)
    await w.client.publish(*[Left(f"k{n}", 100 + n) for n in range(50)])
    await w.settle(step_s=0.5)
    assert await counter.state(w) == {"all": 100}
    assert len(await w.events(Out)) == 100


async def test_what_waits_parked_is_handled_again_and_then_published_for_the_first_time(world: Make) -> None:
    counter = Counter(delivery=PARK)
    counter.failing = {1}
    w = await world(counter.app)
    await w.client.publish(*[Left("a", n) for n in range(4)])
    await w.start()
    await w.until(lambda: len(counter.replayed) == 2)
    await w.stop()
    counter.failing = set()
    await begin_again(w)
    await w.start()
    await w.settle()
    assert await counter.state(w) == {"all": 4}
    assert sorted(event.n for event in await w.events(Out)) == [0, 1, 2, 3]
    assert await w.store.parked() == []


async def test_an_event_that_fails_in_a_replay_publishes_nothing_when_it_succeeds_later(world: Make) -> None:
    counter = Counter(delivery=PARK)
    w = await world(counter.app)
    await w.client.publish(*[Left("a", n) for n in range(3)])
    await w.start()
    await w.settle()
    counter.failing = {1}
    await begin_again(w)
    await w.until(lambda: counter.replayed.count(True) == 2, step_s=0.5)
    counter.failing = set()
    await w.until(lambda: not w.store.commits[-1][0] or bool(w.store.commits[-1][0][0].holds), step_s=0.5)
    assert await w.store.request("app", None, "redrive") == 1
    await w.until(lambda: len(counter.replayed) == 7, step_s=0.5)
    await w.settle(step_s=0.5)
    assert await counter.state(w) == {"all": 3}
    assert sorted(event.n for event in await w.events(Out)) == [0, 1, 2]
    assert counter.replayed == [False] * 3 + [True] * 4


async def test_a_replay_handles_the_past_of_a_type_that_was_passed_by_and_publishes_for_it(world: Make) -> None:
    old, new = Counter(), Counter()

    @new.app.on(Second)
    async def late(event: Second, tx: Tx) -> Out:
        new.replayed.append(tx.replaying)
        tx.put(new.total, "all", await tx.get(new.total, "all", 0) + 100)
        return Out(event.key, event.n)

    w = await world(old.app)
    await w.client.publish(*[Left("a", n) for n in range(3)], *[Second("a", 10 + n) for n in range(2)])
    await w.start()
    await w.settle()
    await w.stop()
    w.now(new.app)
    with pytest.raises(StartUndecided, match="everlog replay MODULE:app --subscription app"):
        await w.start()
    plan = await plan_repetition(w.log, w.store, new.app.declaration().subscriptions[0], "beginning", rebuilds=True)
    assert plan.grown == ["test.left.second/1"]
    with pytest.raises(CommandRefused, match="with a replay"):
        await plan_repetition(w.log, w.store, new.app.declaration().subscriptions[0], "beginning", rebuilds=False)
    await w.store.start_again(plan.again)
    await w.start()
    await w.settle()
    assert await new.state(w) == {"all": 203}
    assert new.replayed == [True, True, True, False, False]
    assert [event.n for event in await w.events(Out)] == [0, 1, 2, 10, 11]


async def test_a_renamed_subscription_goes_on_and_publishes_under_its_ids(world: Make) -> None:
    keys: list[str] = []

    def app(name: str, renamed_from: str | None = None) -> App[None]:
        made = App("app", delivery=FAST)
        total = made.state("own/1", int)

        @made.on(Right)
        async def other(event: Right, tx: Tx) -> None:
            tx.add(total, "all", 1)

        @made.subscription(name, delivery=FAST, renamed_from=renamed_from).on(Left)
        async def handle(event: Left, tx: Tx) -> Out:
            keys.append(tx.idempotency_key)
            return Out(event.key, event.n)

        return made

    async def ids(w: World) -> list[str]:
        return [record.id for record in await w.records(contract_topic())]

    w = await world(app("emails"))
    await w.client.publish(Left("a", 1))
    await w.start()
    await w.settle()
    await w.stop()
    w.now(app("mail", "emails"))
    await w.start()
    await w.settle()
    assert len(keys) == 1
    await w.client.publish(Left("a", 2))
    await w.settle()
    reports = {name: report.is_retired for name, (report, _) in (await read_reports(w.log)).items()}
    assert reports["app/emails"]
    first, second = keys
    assert (first.split("/")[:2], second.split("/")[:2]) == (["app", "emails"], ["app", "emails"])
    stood = next(one for one in (await w.store.status()).subscriptions if one.name == "mail")
    before = await ids(w)
    again = Again("mail", {one.where: min(BEGINNING, one.through) for one in stood.progress}, rebuilds=False)
    await w.store.start_again(again)
    await w.settle(step_s=0.5)
    assert sorted(await ids(w)) == sorted(before * 2)  # under the very ids


@pytest.mark.parametrize("names", [("a", "app"), ("a", "a"), ("a", "b")])
def test_a_former_name_belongs_to_one_subscription(names: tuple[str, str]) -> None:
    app = App("app")
    app.on(Right)(_nothing)
    app.subscription("b").on(Left)(_nothing)
    app.subscription(names[0], renamed_from=names[1]).on(Left)(_nothing)
    with pytest.raises(DeclarationError, match="is named twice"):
        app.declaration()


async def _nothing(event: Any) -> None: ...


async def test_a_rewind_runs_the_same_events_over_todays_state_and_publishes_them_again_under_their_ids(world: Make) -> None:
    counter = Counter()
    w = await world(counter.app)
    await w.client.publish(*[Left("a", n) for n in range(3)])
    await w.start()
    await w.settle()
    assert await begin_again(w, rebuilds=False, after=Offset(0)) == 1
    await w.settle(step_s=0.5)
    assert await counter.state(w) == {"all": 5}
    events = await w.events(Out)
    assert sorted(event.n for event in events) == [0, 1, 1, 2, 2]
    records = await w.records(*[contract_topic()])
    ids: dict[int, set[str]] = {}
    for record in records:
        ids.setdefault(int(record.data.split(b'"n":')[1].split(b",")[0]), set()).add(record.id)
    assert [len(ids[n]) for n in range(3)] == [1, 1, 1]


def contract_topic() -> Any:
    from tests.subscriptions.world import out

    return out


async def test_another_subscription_reads_the_state_of_the_new_generation(world: Make) -> None:
    app = App("app", delivery=FAST)
    total = app.state("total/1", int)
    mail = app.subscription("mail", delivery=FAST)
    seen: list[int] = []

    @app.on(Left)
    async def count(event: Left, tx: Tx) -> None:
        tx.put(total, event.key, await tx.get(total, event.key, 0) + 1)

    @mail.on(Left)
    async def tell(event: Left, tx: Tx) -> Out:
        seen.append(await tx.get(total, "a", 0))
        return Out(event.key, event.n)

    w = await world(app)
    await w.client.publish(Left("a", 1), Left("a", 2))
    await w.start()
    await w.settle()
    stood = next(one for one in (await w.store.status()).subscriptions if one.name == "app").progress
    last = {one.where: one.through for one in stood}
    await w.store.start_again(Again("app", dict.fromkeys(last, BEGINNING), rebuilds=True))
    await w.settle(step_s=0.5)
    await w.client.publish(Left("a", 3))
    await w.settle(step_s=0.5)
    assert read_rows(await w.rows("total/1")) == {"a": 3}
    assert seen[-1] in (2, 3)
    assert len(await w.events(Out)) == 3
    assert TopicPartition("test.left", 0) in last
