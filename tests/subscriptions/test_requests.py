"""Requests to redrive and to skip that are answered at the same moment at which their keys go on by themselves."""

from __future__ import annotations

import random
from typing import Literal

import pytest
from tests.subscriptions import machine_shop as shop
from tests.subscriptions.machine_ledger import Ledger
from tests.subscriptions.machine_world import World


@pytest.mark.parametrize("action", ["redrive", "skip"])
@pytest.mark.parametrize("seed", range(4))
def test_a_request_that_is_answered_as_newer_code_takes_the_slot_over_runs_each_event_once(
    action: Literal["redrive", "skip"], seed: int
) -> None:
    w = World(random.Random(seed))
    ledger = Ledger(w)
    try:
        w.start("a", is_new=False)
        w.rest()
        numbers = [ledger.sends("left", "k1") for _ in range(4)]
        w.do(w.client.publish(*[shop.NewLeft("k1", n) for n in numbers]))
        for n in numbers:
            ledger.stored(n)
        w.advance(2)
        w.end_all()
        w.advance(6)
        w.do(w.store.request("shop", None, action))
        w.start("a", is_new=True)  # it knows the events that are parked, and redrives them by itself
        w.advance(30)
        assert w.do(ledger.wrong()) == []
    finally:
        w.close()
