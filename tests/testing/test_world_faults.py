"""Faults on request: whatever happens to an app of a world, nothing is lost and nothing done twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.testing.shop import (
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

from everlog import App
from everlog.errors import LogReadOnly
from everlog.testing import World
from everlog.testing.faults import POINTS, Point

Make = Callable[..., World]


@pytest.fixture(params=["memory", "files"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Make worlds of one kind."""

    def made(*apps: App[Any], **options: Any) -> World:
        return World(*apps, real=False if request.param == "memory" else tmp_path, **options)

    return made


async def all_is_done_once(world: World, office: PostOffice) -> None:
    """Check that five orders on four pieces came to what they should."""
    assert sorted(event.order_id for event in world.events(StockReserved)) == ["1", "2", "3", "4"]
    assert world.events(StockRefused) == [StockRefused("5", ("apple",))]
    assert world.read(stock, ("b", "apple")) == 0
    assert len(set(office.sent)) == 5
    pages = Counter(event.page for event in world.events(Visited))
    assert pages == {f"fact {number}": 1 for number in range(1, 6)}
    assert world.rows(counts) == {(page,): 1 for page in pages}


@pytest.mark.parametrize("app", [inventory, ledger, notify, counting], ids=lambda app: app.name)
@pytest.mark.parametrize("at", [None, *POINTS])
async def test_an_app_that_is_killed_comes_back_and_nothing_is_lost_or_doubled(
    make: Make, app: App[Any], at: Point | None
) -> None:
    office = PostOffice()
    async with make(inventory, ledger, notify, counting, resources={notify: office}) as world:
        await world.publish(delivery(4))
        await world.settle()
        await world.publish(order("1"), order("2"))
        await world.crash(app, at=at)
        await world.publish(order("3"), order("4"), order("5"))
        await world.settle()
        await all_is_done_once(world, office)
        assert world.failures() == []


@pytest.mark.parametrize("at", POINTS)
async def test_the_kill_happens_where_it_was_asked_for(at: Point) -> None:
    async with World(inventory) as world:
        await world.crash(inventory, at=at)
        await world.publish(order("1"))
        await world.settle()
        calls = [line for line in world.story().splitlines() if "reserve at" in line]
        assert len(calls) == (2 if at in ("before_handler", "after_handler") else 1)
        assert any("was killed" in line for line in calls) == (at in ("before_handler", "after_handler"))
        assert len(world.events(StockRefused)) == 1


@pytest.mark.parametrize("app", [inventory, ledger, notify], ids=lambda app: app.name)
@pytest.mark.parametrize("at", [None, *POINTS])
async def test_an_app_that_loses_its_lease_is_fenced_and_another_member_goes_on(
    make: Make, app: App[Any], at: Point | None
) -> None:
    office = PostOffice()
    async with make(inventory, ledger, notify, counting, resources={notify: office}) as world:
        await world.publish(delivery(4))
        await world.settle()
        await world.publish(order("1"), order("2"))
        await world.expire_lease(app, at=at)
        await world.publish(order("3"), order("4"), order("5"))
        await world.settle()
        await all_is_done_once(world, office)


async def test_a_handler_that_is_called_twice_changes_once_and_mails_under_one_key() -> None:
    office = PostOffice()
    async with World(inventory, notify, ledger, counting, resources={notify: office}) as world:
        for app in (inventory, notify, ledger, counting):
            world.repeat(app, calls=100)
        await world.publish(delivery(4))
        await world.settle()
        for number in "12345":
            await world.publish(order(number))
            await world.settle()
        await all_is_done_once(world, office)
        assert len(office.sent) == 10
        assert "(called twice, as asked)" in world.story()


async def test_an_app_that_takes_calls_for_events_shows_it_when_it_is_called_twice() -> None:
    app = App("forgetful")
    seen: list[str] = []

    @app.on(Visited)
    async def see(fact: Visited) -> None:
        seen.append(fact.page)

    async with World(app) as world:
        world.repeat(app)
        await world.publish(Visited("home"))
        await world.publish(Visited("cart"))
        await world.settle()
        assert sorted(seen) == ["cart", "home", "home"]


async def test_while_the_log_is_down_nothing_is_published_and_then_everything(make: Make) -> None:
    office = PostOffice()
    async with make(inventory, notify, ledger, counting, resources={notify: office}) as world:
        await world.publish(delivery(4))
        await world.settle()
        await world.publish(order("1"))
        world.log_outage(90)
        with pytest.raises(LogReadOnly, match="log_outage"):
            await world.publish(order("2"))
        await world.advance(60)
        with pytest.raises(LogReadOnly):
            await world.publish(order("2"))
        await world.settle()
        assert world.clock.monotonic_s() >= 1_090
        await world.publish(*[order(number) for number in "2345"])
        await world.settle()
        await all_is_done_once(world, office)


async def test_what_was_decided_in_an_outage_of_the_log_waits_in_the_outbox() -> None:
    async with World(inventory) as world:
        await world.crash(inventory, at="before_append")
        await world.publish(order("1"))
        world.log_outage(30)
        await world.advance(20)
        assert world.events(StockRefused) == []
        await world.settle()
        assert world.events(StockRefused) == [StockRefused("1", ("apple",))]


async def test_while_a_store_takes_no_writes_its_app_waits_and_others_go_on(make: Make) -> None:
    office = PostOffice()
    async with make(inventory, notify, ledger, counting, resources={notify: office}) as world:
        await world.publish(delivery(4))
        await world.settle()
        world.store_outage(ledger, 20)
        await world.publish(*[order(number) for number in "12345"])
        await world.advance(15)
        assert len(office.sent) == 5
        assert world.events(Visited) == []
        await world.settle()
        await all_is_done_once(world, office)


async def test_a_point_that_is_none_is_refused() -> None:
    async with World(inventory) as world:
        with pytest.raises(ValueError, match="before_handler, after_handler"):
            await world.crash(inventory, at="later")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
