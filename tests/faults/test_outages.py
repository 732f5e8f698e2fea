"""What two processes need is down for a while, with real poison among their keys: paused, nothing else parked, and resumed in order."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence

import pytest
from tests.subscriptions import machine_shop as shop
from tests.subscriptions.machine_bugs import no_pause
from tests.subscriptions.machine_ledger import SUBSCRIPTIONS, Ledger
from tests.subscriptions.machine_world import World

KEYS = [f"k{number}" for number in range(24)]
BAD = ["k5", "k11"]


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Outage:
    """Two processes of one app, what is published to them, and what becomes of it."""

    def __init__(self, seed: int) -> None:
        self.world = World(random.Random(seed))
        self.ledger = Ledger(self.world)
        for place in "ab":
            self.world.start(place, is_new=False)
        self.world.rest()

    def publish(self, keys: Sequence[str]) -> None:
        world, ledger = self.world, self.ledger
        events = [shop.Left(key, ledger.sends("left", key)) for key in keys]
        world.do(world.client.publish(*events))
        for event in events:
            ledger.stored(event.n)

    def parked(self) -> dict[str, set[str]]:
        store = self.world.store
        return {
            name: {one.key for one in self.world.do(store.parked(name)) if one.first.next_attempt_us is None}
            for name in SUBSCRIPTIONS
        }

    def paused(self) -> dict[str, int]:
        """Return how many processes have paused each subscription."""
        status = self.world.do(self.world.store.status())
        return {one.name: len(one.paused) for one in status.subscriptions}

    def until_settled(self, within_s: int) -> bool:
        """Move the clock until nothing is left to do; tells whether that was so in time."""
        world = self.world
        for _ in range(within_s):
            world.advance(1.0)
            status = world.do(world.store.status())
            if not status.outbox and not any(one.held_records for one in status.subscriptions):
                heads = world.do(world.log.head(shop.left.name)).offsets
                places = [place for one in status.subscriptions for place in one.progress if place.where in heads]
                if all(place.through >= heads[place.where] and not place.unfinished for place in places):
                    return True
        return False


def go_through(outage: Outage) -> list[str]:
    """Park two bad keys, let everything be down for five minutes, and mend it; return what was wrong."""
    world, wrong = outage.world, list[str]()
    world.weather.modes.update(dict.fromkeys(BAD, "fails"))
    outage.publish(KEYS * 2)
    world.advance(60.0)
    expected = {name: set(BAD) for name in SUBSCRIPTIONS}
    if outage.parked() != expected:
        wrong.append(f"before: parked {outage.parked()}")

    world.weather.is_down = True
    for _ in range(5):
        outage.publish(KEYS)
        world.advance(60.0)
    if outage.paused() != dict.fromkeys(SUBSCRIPTIONS, 2):
        wrong.append(f"paused in {outage.paused()} processes")
    if outage.parked() != expected:
        wrong.append(f"meanwhile: parked {outage.parked()}")

    world.weather.clear()
    world.advance(150.0)
    if outage.paused() != dict.fromkeys(SUBSCRIPTIONS, 0):
        wrong.append(f"still paused in {outage.paused()} processes")
    for name in SUBSCRIPTIONS:
        world.do(world.store.request(name, None, "redrive"))
    if not outage.until_settled(120):
        wrong.append("not settled")
    return wrong + world.do(outage.ledger.wrong())


@pytest.mark.parametrize("seed", range(4))
def test_an_outage_of_two_processes_parks_nobody_but_the_poison_and_loses_no_order(seed: int) -> None:
    outage = Outage(seed)
    try:
        assert go_through(outage) == []
    finally:
        outage.world.close()


def test_an_outage_without_a_pause_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    no_pause(monkeypatch)
    outage = Outage(0)
    try:
        wrong = go_through(outage)
        assert any(line.startswith("meanwhile: parked") for line in wrong)
        assert any(line.startswith("paused in") for line in wrong)
    finally:
        outage.world.close()
