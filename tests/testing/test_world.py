"""`testing.World`: several apps in one test, in memory or in files, with a time that is moved by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.testing.shop import (
    MailDown,
    OrderPlaced,
    PostOffice,
    StockRefused,
    StockReserved,
    Visited,
    counting,
    counts,
    delivery,
    inventory,
    ledger,
    notify,
    order,
    stock,
)

from everlog import App, Delivery, Retry, Topic, Tx, testing
from everlog.contracts.event import Event
from everlog.errors import EventRefused, WrongLog
from everlog.testing import EventFailed, Unsettled, World

Make = Callable[..., World]


@pytest.fixture(params=["memory", "files"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Make worlds of one kind."""

    def made(*apps: App[Any], **options: Any) -> World:
        return World(*apps, real=False if request.param == "memory" else tmp_path, **options)

    return made


async def test_the_customer_hears_of_it() -> None:
    async with testing.World(inventory, notify, resources={notify: PostOffice()}) as world:
        await world.publish(order("1"))
        await world.settle()
        assert world.events(StockRefused) == [StockRefused("1", ("apple",))]


async def test_apps_work_through_what_is_published_and_what_follows_from_it(make: Make) -> None:
    office = PostOffice()
    async with make(inventory, notify, ledger, counting, resources={notify: office}) as world:
        await world.publish(delivery(1))
        await world.settle()
        await world.publish(order("1"), order("2"))
        await world.settle()
        assert world.events(StockReserved) == [StockReserved("1")]
        assert world.events(StockRefused) == [StockRefused("2", ("apple",))]
        assert [text for _, text in office.sent] == ["StockReserved 1", "StockRefused 2"]
        assert world.read(stock, ("b", "apple")) == 0
        assert world.rows(counts) == {("fact 1",): 1, ("fact 2",): 1}
        assert world.read(counts, "fact 3") is None
        assert world.parked() == []
        assert world.failures() == []


async def test_events_are_in_the_order_of_the_log() -> None:
    async with World(counting) as world:
        for number in range(20):
            await world.publish(Visited(str(number)))
        assert [event.page for event in world.events(Visited)] == [str(number) for number in range(20)]


async def test_what_a_handler_raises_ends_the_test_with_its_own_error_and_traceback() -> None:
    office = PostOffice()
    office.is_up = False
    with pytest.raises(MailDown, match="no answer") as raised:  # noqa: PT012 the world is a part of it
        async with World(inventory, notify, resources={notify: office}) as world:
            await world.publish(order("1"))
            await world.settle()
    assert raised.traceback[-1].name == "send"
    notes = "\n".join(raised.value.__notes__)
    assert "raised by notify: tell on shop.stock_refused/1 of key '1'" in notes
    assert office.calls == 1


async def test_a_failure_that_nobody_settled_for_ends_the_test_as_well() -> None:
    office = PostOffice()
    office.is_up = False
    with pytest.raises(MailDown):  # noqa: PT012 the end of the world raises it
        async with World(inventory, notify, resources={notify: office}) as world:
            await world.publish(order("1"))
            for _ in range(10_000):
                if not world.failures():
                    await asyncio.sleep(0)
            assert world.failures()


async def test_hours_of_retries_pass_in_a_moment(make: Make) -> None:
    office = PostOffice()
    office.is_up = False
    async with make(inventory, notify, resources={notify: office}) as world:
        await world.publish(order("1"))
        begun_s = time.process_time()
        await world.advance(3_600, raises=False)
        assert time.process_time() - begun_s < 3
        assert 5 < office.calls < 20
        assert not world.parked()
        office.is_up = True
        await world.settle()
        assert office.sent == [("notify/notify/inventory/" + office.sent[0][0].rpartition("/")[2], "StockRefused 1")]


async def test_settling_moves_time_to_the_last_retry_and_what_is_parked_is_settled(make: Make) -> None:
    office = PostOffice()
    office.is_up = False
    async with make(inventory, notify, resources={notify: office}) as world:
        await world.publish(order("1"))
        begun_s = world.clock.monotonic_s()
        await world.settle(raises=False)
        assert world.parked() == world.parked(notify) == [StockRefused("1", ("apple",))]
        assert world.parked(inventory) == []
        assert office.calls == len(world.failures()) == 20
        assert world.clock.monotonic_s() - begun_s > 600
        await world.settle()  # it was told of all of them


async def test_a_handler_that_fails_at_first_is_settled_when_it_has_succeeded() -> None:
    flaky = App("flaky", delivery=Delivery(on_error={ValueError: Retry(attempts=5)}))
    tries: list[str] = []

    @flaky.on(Visited)
    async def visit(fact: Visited) -> None:
        tries.append(fact.page)
        if len(tries) < 4:
            raise ValueError(f"try {len(tries)}")

    async with World(flaky) as world:
        await world.publish(Visited("home"))
        await world.settle(raises=False)
        assert tries == ["home"] * 4
        assert world.parked() == []
        assert [str(error) for error in world.failures()] == ["try 1", "try 2", "try 3"]


async def test_many_keys_that_fail_pause_a_subscription_and_it_goes_on_by_itself() -> None:
    office = PostOffice()
    office.is_up = False
    async with World(inventory, notify, resources={notify: office}) as world:
        await world.publish(*[order(str(number)) for number in range(30)])
        await world.advance(7_200, raises=False)
        assert world.parked() == []
        assert not office.sent
        office.is_up = True
        await world.settle()
        assert len(office.sent) == 30


async def test_what_cannot_be_published_fails_the_test_though_no_handler_raised() -> None:
    wrong = App("wrong")

    @wrong.on(Visited)
    async def answer(fact: Visited) -> StockReserved:
        return StockReserved(len(fact.page))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    async with World(wrong) as world:
        await world.publish(Visited("home"))
        with pytest.raises(EventFailed, match=r"order_id"):
            await world.settle()


async def test_a_handler_that_does_not_end_is_named() -> None:
    stuck = App("stuck", delivery=Delivery(on_error={Exception: "park"}))

    @stuck.on(Visited)
    async def wait(fact: Visited) -> None:
        await asyncio.Event().wait()

    async with World(stuck) as world:
        await world.publish(Visited("home"))
        with pytest.raises(Unsettled, match=r"stuck: .*wait did not end within 0\.1 s"):
            await world.settle(timeout_s=0.1)
        await world.advance(40, raises=False)  # its time limit
        assert world.parked() == [Visited("home")]
        assert "HandlerTimeout" in str(world.failures()[0])


async def test_a_subscription_that_has_stopped_never_settles_and_says_what_is_left() -> None:
    stopping = App("stopping", delivery=Delivery(on_error={ValueError: "stop"}))

    @stopping.on(Visited)
    async def refuse(fact: Visited) -> None:
        raise ValueError(fact.page)

    async with World(stopping) as world:
        await world.publish(Visited("home"))
        with pytest.raises(Unsettled, match="stopping has 1 events to handle"):
            await world.settle(raises=False)


async def test_an_app_that_does_not_start_says_why() -> None:
    empty = App("empty")
    with pytest.raises(Exception, match="handles nothing"):
        async with World(empty):
            pass


async def test_worlds_beside_each_other_know_nothing_of_each_other() -> None:
    async with World(counting) as one, World(counting) as other:
        await one.publish(Visited("one"))
        await other.publish(Visited("other"))
        await one.advance(100)
        await asyncio.gather(one.settle(), other.settle())
        assert (one.rows(counts), other.rows(counts)) == ({("one",): 1}, {("other",): 1})
        assert other.clock.monotonic_s() == one.clock.monotonic_s() - 100


async def played(seed: int) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
    """Return the events, their ids, and when mails were tried."""
    office = PostOffice()
    office.is_up = False
    async with World(inventory, notify, ledger, counting, resources={notify: office}, seed=seed, real=False) as world:
        await world.publish(*[order(str(number), customer=str(number % 3)) for number in range(12)])
        await world.publish(Visited("a"), Visited("b"))
        await world.crash(inventory, at="after_commit")
        await world.advance(60, raises=False)
        office.is_up = True
        await world.settle(raises=False)
        events = [*world.events(OrderPlaced), *world.events(StockRefused), *world.events(Visited)]
        tried = [line for line in world.story().splitlines() if "notify: tell at" in line]
        return sorted(map(repr, events)), sorted(record.id for record in world.journal.records), sorted(tried)


async def test_the_same_seed_gives_the_same_world_and_another_one_another() -> None:
    first, other = await played(7), await played(8)
    assert first == await played(7)
    assert first[0] == other[0]
    assert first[2] != other[2]


async def test_time_stands_still_while_statements_run_in_their_thread() -> None:
    for _ in range(10):
        async with World(inventory, ledger, counting, real=False) as world:
            begun_s = world.clock.monotonic_s()
            await world.publish(*[order(str(number), customer=str(number % 3)) for number in range(12)])
            await world.settle()
            assert len(world.events(Visited)) == 12
            assert world.clock.monotonic_s() == begun_s


async def test_time_passes_for_retention() -> None:
    brief = Topic("test.brief", key=None, keep_s=60.0)

    @brief.event("test.brief_seen/1")
    class Brief(Event):
        n: int

    app = App("brief")

    @app.on(Brief)
    async def see(fact: Brief) -> None:
        pass

    async with World(app) as world:
        await world.publish(Brief(1))
        await world.settle()
        await world.advance(3_600)
        first = (await world.client.log.first("test.brief")).offsets
        assert max(first.values()) == 0
        assert world.events(Brief) == [Brief(1)]  # what was published is not forgotten


async def test_a_world_of_files_goes_on_where_another_one_ended(tmp_path: Path) -> None:
    async with World(counting, real=tmp_path) as world:
        await world.publish(Visited("home"))
        await world.settle()
    async with World(counting, real=tmp_path) as world:
        await world.publish(Visited("home"))
        await world.settle()
        assert world.read(counts, "home") == 2
    (tmp_path / "log.db").unlink()
    for beside in tmp_path.glob("log.db-*"):  # noqa: ASYNC240 a few small files
        beside.unlink()
    with pytest.raises(WrongLog):
        async with World(counting, real=tmp_path):
            pass


async def test_a_world_is_used_inside_its_block_and_for_its_own_apps() -> None:
    world = World(counting)
    with pytest.raises(RuntimeError, match="async with"):
        await world.settle()
    async with world:
        with pytest.raises(ValueError, match="not in this world"):
            world.parked(inventory)
        with pytest.raises(ValueError, match="no app of this world"):
            world.read(stock, "a")
        with pytest.raises(ValueError, match="cannot go back"):
            await world.advance(-1)
        with pytest.raises(EventRefused):
            await world.publish("home")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="two of the name 'counting'"):
        World(counting, counting)
    with pytest.raises(ValueError, match="found none"):
        World()
    with pytest.raises(ValueError, match="not in this world"):
        World(counting, resources={notify: PostOffice()})


async def test_the_story_says_what_was_published_and_what_every_app_did_with_it() -> None:
    office = PostOffice()
    office.is_up = False
    with pytest.raises(AssertionError) as raised:  # noqa: PT012 the end of the world adds to it
        async with World(inventory, notify, resources={notify: office}, seed=3) as world:
            await world.publish(order("1"))
            await world.publish(Visited("home"))
            await world.settle(raises=False)
            raise AssertionError("this is wrong")
    (story,) = raised.value.__notes__
    lines = story.splitlines()
    assert lines[0].startswith("a world of inventory, notify with seed 3, at ")
    assert lines[1].startswith('• shop.order_placed/1 key c from test: {"order_id":"1"')
    assert lines[2] == "    inventory: reserve at 0.000 s published StockRefused(order_id='1', missing=('apple',))"
    assert "• shop.visited/1 key None from test: " in story
    assert "    nobody handles it" in lines
    assert "raised MailDown: no answer to 'StockRefused 1'" in story
    assert "    notify: parked after 20 attempts, MailDown: no answer to 'StockRefused 1'" in lines


async def test_a_subscription_of_an_app_is_called_by_both_names() -> None:
    app = App("two")
    other = app.subscription("mails")
    sent = other.state("sent/1", int)

    @other.on(Visited)
    async def mail(fact: Visited, tx: Tx) -> None:
        tx.add(sent, fact.page, 1)

    async with World(app) as world:
        await world.publish(Visited("home"))
        await world.settle()
        assert world.read(sent, "home") == 1
        assert "two/mails: " in world.story()
