"""Measuring: where an app stands and what it has done, noted once a second for whoever wants to see it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final, NamedTuple

from everlog.clock import Clock
from everlog.errors import EverlogError
from everlog.log import Log
from everlog.observe import meters as families
from everlog.observe.meters import Histogram, Measured, Meters
from everlog.store import Store
from everlog.subscriptions.relay import Relay
from everlog.subscriptions.report import backlog_of
from everlog.subscriptions.tally import Tally

MEASURE_EVERY_S: Final = 1.0

_logger: Final = logging.getLogger("everlog")


class Groups(NamedTuple):
    """What the committer tells of its groups."""

    units: Histogram
    seconds: Histogram

    def committed(self, units: int, seconds: float) -> None:
        """Note a commit; the size of one that has units."""
        self.seconds.add(seconds)
        if units:
            self.units.add(units)


class Measuring:
    """The numbers of one app.

    Args:
        app: Its name.
        log, store: What it works with.
        meters: Where the numbers go.
        clock: The time.
    """

    def __init__(self, app: str, log: Log, store: Store, meters: Meters, clock: Clock) -> None:
        self._app = app
        self._log = log
        self._store = store
        self._meters = meters
        self._clock = clock
        self._counted: dict[tuple[str, ...], int] = {}
        self._tallies: Mapping[str, Tally] = {}
        self._relay: Relay | None = None
        self.groups: Final = Groups(meters.histogram(families.GROUP_UNITS, app), meters.histogram(families.COMMIT_SECONDS, app))
        if isinstance(store, Measured):
            store.measure(meters.histogram(families.SYNC_SECONDS, "store", app).add)

    async def run(self, tallies: Mapping[str, Tally], relay: Relay) -> None:
        """Note them until cancelled.

        Args:
            tallies: What each subscription has done here, by its name.
            relay: Sends the outbox.
        """
        self._tallies, self._relay = tallies, relay
        while True:
            self._note_done()
            try:
                await self._note_standing()
            except EverlogError as error:
                _logger.warning("%s: its metrics do not show where it stands for now: %s", self._app, error)
            await self._clock.sleep(MEASURE_EVERY_S)

    def close(self) -> None:
        """Show no more where the app stands. What it has done stays."""
        self._note_done()
        self._meters.forget_gauges(self._app)

    def _note_done(self) -> None:
        if self._relay is not None:
            self._count(families.SENT, self._relay.sent)
        for name, tally in self._tallies.items():
            self._count(families.HANDLED, tally.handled, name)
            self._count(families.FAILED, tally.failed, name)
            self._count(families.RETRIES, tally.retries, name)
            self._count(families.PARKED, tally.parked, name)
            self._count(families.SKIPPED, tally.skipped, name)

    async def _note_standing(self) -> None:
        status = await self._store.status()
        app, meters = self._app, self._meters
        meters.set(families.OUTBOX, status.outbox, app)
        meters.set(families.OUTBOX_REFUSED, status.outbox_parked, app)
        for subscription in status.subscriptions:
            waiting = await backlog_of(self._log, subscription)
            age_s = 0.0 if waiting.oldest_us is None else max(0.0, (self._clock.wall_us() - waiting.oldest_us) / 1e6)
            place = (app, subscription.name)
            meters.set(families.LAG_EVENTS, waiting.count + subscription.held_records, *place)
            meters.set(families.LAG_SECONDS, age_s, *place)
            meters.set(families.PAUSED, 1 if subscription.paused else 0, *place)
            meters.set(families.BLOCKED_KEYS, subscription.blocked_keys, *place)
            meters.set(families.PARKED_KEYS, subscription.parked_keys, *place)
            meters.set(families.HELD_EVENTS, subscription.held_records, *place)

    def _count(self, family: families.Family, count: int, *subscription: str) -> None:
        """Add what a count has grown by: another run of the app in this process begins at 0."""
        place = (family.name, *subscription)
        self._meters.add(family, count - self._counted.get(place, 0), self._app, *subscription)
        self._counted[place] = count
