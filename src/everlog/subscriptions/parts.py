"""The parts of a subscription at work that others are made from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from everlog.subscriptions.calls import Calls
from everlog.subscriptions.feed import Feed
from everlog.subscriptions.holding import Holding
from everlog.subscriptions.lanes import Lanes
from everlog.subscriptions.surroundings import Surroundings
from everlog.subscriptions.tally import Tally
from everlog.subscriptions.units import Units
from everlog.subscriptions.worker import Worker

Job = Callable[[Worker], Awaitable[None]]
"""What a worker does beside taking records."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the engine puts together, and gives to those that take records."""

    calls: Calls
    feed: Feed
    lanes: Lanes
    holding: Holding
    units: Units
    around: Surroundings
    tally: Tally
