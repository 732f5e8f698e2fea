"""What is refused before the first event is handled, and where a subscription begins."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from uuid import uuid4

import pytest
from tests.subscriptions.world import Left, Out, Right, left, right

from everlog import App, Delivery
from everlog.client import Client
from everlog.errors import StartUndecided, StoreReplaced, SubscriptionMissing, WrongLog
from everlog.log import ProducerBatch
from everlog.logs.memory import MemoryLog
from everlog.position import BEGINNING, Offset, TopicPartition
from everlog.record import NewRecord
from everlog.store import Progress, Registered, relay_producer
from everlog.stores.sqlite.store import SqliteStore
from everlog.subscriptions import start
from everlog.subscriptions.start import begin, check_grown, check_log, check_replaced
from everlog.testing.clock import ManualClock


class Place:
    """A log and a store in memory."""

    def __init__(self, log: MemoryLog, store: SqliteStore) -> None:
        self.log = log
        self.store = store
        self.clock = ManualClock()
        self.client = Client(log, source="test", clock=self.clock)

    async def register(self, app: App[None]) -> Registered:
        return await self.store.register(app.declaration().spec(), log=self.log.identity)

    async def begin(self, app: App[None]) -> dict[str, dict[int, int]]:
        """Register, begin, and return the offsets by topic and partition."""
        await self.register(app)
        for subscription in app.declaration().subscriptions:
            stored = {one.name: one for one in (await self.store.status()).subscriptions}
            await begin(self.log, self.store, subscription, stored.get(subscription.name))
        found: dict[str, dict[int, int]] = {}
        for standing in (await self.store.status()).subscriptions:
            for progress in standing.progress:
                found.setdefault(progress.where.topic, {})[progress.where.partition] = progress.through
        return found


@pytest.fixture
async def place() -> AsyncGenerator[Place]:
    clock = ManualClock()
    log = MemoryLog(clock)
    await log.ensure_topic(left.spec())
    await log.ensure_topic(right.spec())
    store = SqliteStore(None, clock=clock, lease_s=5.0)
    await store.open()
    yield Place(log, store)
    await store.aclose()
    await log.aclose()


def _app(*types: type[Left | Right], delivery: Delivery | None = None) -> App[None]:
    app = App("app", delivery=delivery or Delivery())

    for cls in types:

        async def handle(event: Left | Right) -> Out | None:
            return None

        app.on(cls)(handle)
    return app


async def test_a_new_subscription_begins_at_the_first_event(place: Place) -> None:
    await place.client.publish(*[Left("k", n) for n in range(3)])
    assert set((await place.begin(_app(Left)))[left.name].values()) == {BEGINNING}


async def test_one_that_starts_now_begins_behind_the_last_event(place: Place) -> None:
    await place.client.publish(*[Left("k", n) for n in range(3)])
    offsets = await place.begin(_app(Left, delivery=Delivery(start="now")))
    assert sorted(offsets[left.name].values()) == [-1, -1, -1, 2]


async def test_much_history_is_not_handled_without_being_asked_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "UNDECIDED_EVENTS", 2)
    await place.client.publish(*[Left("k", n) for n in range(3)])
    with pytest.raises(StartUndecided, match=r'start="beginning".*start="now"'):
        await place.begin(_app(Left))
    assert set((await place.begin(_app(Left, delivery=Delivery(start="beginning"))))[left.name].values()) == {BEGINNING}


async def test_progress_that_is_stored_stays_whatever_the_delivery_says(place: Place) -> None:
    await place.client.publish(*[Left("k", n) for n in range(3)])
    before = await place.begin(_app(Left, delivery=Delivery(start="beginning")))
    assert await place.begin(_app(Left, delivery=Delivery(start="now"))) == before


async def test_a_topic_that_is_new_to_a_subscription_begins_by_the_same_rule(place: Place) -> None:
    await place.begin(_app(Left))
    await place.client.publish(Right("k"))
    offsets = await place.begin(_app(Left, Right))
    assert set(offsets[right.name].values()) == {BEGINNING}


async def test_a_type_that_is_new_on_a_topic_that_was_read_is_refused(place: Place) -> None:
    app = _app(Left)
    await place.begin(app)
    registered = Registered(place.log.identity, frozenset(), {"app": ["test.other/1"]})
    with pytest.raises(StartUndecided, match=r"test\.other/1.*--new-types now"):
        check_grown(app.declaration(), registered, ())


async def test_a_subscription_that_the_code_has_no_more_is_refused(place: Place) -> None:
    app = _app(Left)
    other = app.subscription("emails")

    @other.on(Right)
    async def mail(event: Right) -> None: ...

    await place.register(app)
    with pytest.raises(SubscriptionMissing, match="everlog retire app emails"):
        await place.register(_app(Left))
    await place.store.retire("emails")
    await place.register(_app(Left))


async def test_a_store_of_another_log_is_refused(place: Place) -> None:
    await place.begin(_app(Left))
    registered = await place.store.register(_app(Left).declaration().spec(), log=uuid4())
    other = MemoryLog(place.clock)
    with pytest.raises(WrongLog, match="belongs to log"):
        await check_log("app", other, place.store, registered)
    await other.aclose()


async def test_progress_beyond_the_end_of_the_log_is_refused(place: Place) -> None:
    registered = await place.register(_app(Left))
    await place.store.begin("app", [Progress(TopicPartition(left.name, 0), Offset(5))])
    with pytest.raises(WrongLog, match="the log is older than the store"):
        await check_log("app", place.log, place.store, registered)


async def test_a_log_that_holds_more_of_the_relay_than_the_store_has_given_is_refused(place: Place) -> None:
    registered = await place.register(_app(Left))
    await check_log("app", place.log, place.store, registered)
    name = relay_producer(place.store.identity, place.store.incarnation)
    await place.log.append(
        left.name, [NewRecord("test.left/1", b"{}", "k", 0, "app", 0)], producer=ProducerBatch(name, {0: 0}, named=True)
    )
    with pytest.raises(StoreReplaced, match="the store is older than the log"):
        await check_log("app", place.log, place.store, registered)


async def test_a_new_store_for_an_app_that_reported_from_another_is_refused(place: Place) -> None:
    check_replaced("app", place.store, {"app": str(place.store.identity), "other": "x"})
    with pytest.raises(StoreReplaced, match="--accept-new-store"):
        check_replaced("app", place.store, {"app": str(uuid4())})
