"""Probing: what a paused subscription does. It says so in the store, tries one event now and then, and goes on when one succeeds."""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Protocol

from everlog.errors import StoreError
from everlog.subscriptions.lane import Lane
from everlog.subscriptions.lanes import Lanes
from everlog.subscriptions.outage import Outage
from everlog.subscriptions.surroundings import Surroundings

_logger: Final = logging.getLogger("everlog")


class Host(Protocol):
    """What runs the handlers."""

    def take_one(self) -> Lane | None:
        """Take one record for a probe and return its lane; ``None`` where there is none."""
        ...


class Probing:
    """The pauses of one subscription.

    Args:
        prefix: App and subscription, for the log.
        name: The subscription.
        outage: Decides.
        host: Gives records to try.
        lanes: What waits and what is held.
        around: What the process's engines share.
    """

    def __init__(self, prefix: str, name: str, outage: Outage, host: Host, lanes: Lanes, around: Surroundings) -> None:
        self._prefix = prefix
        self._name = name
        self._outage = outage
        self._host = host
        self._lanes = lanes
        self._store = around.store
        self._clock = around.clock
        self._changed = asyncio.Event()
        self._permits: list[asyncio.Future[None]] = []
        self._new_is_tried = False
        self._held_is_next = False

    def pause(self) -> None:
        """Begin a pause."""
        self._new_is_tried = False
        self._changed.set()

    def resume(self) -> None:
        """End a pause."""
        self._changed.set()
        self.wake()

    def arrived(self) -> None:
        """Note that something new has come: it is tried at once, if the pause has seen nothing new yet."""
        if not self._new_is_tried:
            self._changed.set()

    def wake(self) -> None:
        """Let those that wait for a permit look again."""
        permits, self._permits = self._permits, []
        for permit in permits:
            if not permit.done():
                permit.set_result(None)

    async def permit(self) -> None:
        """Wait for the next probe, or for the end of the pause."""
        if self._outage.reason is None:
            return
        permit: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._permits.append(permit)
        if not self._new_is_tried:
            self._changed.set()
        await permit

    async def run(self) -> None:
        """Probe while the subscription is paused, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            reason = self._outage.reason
            if reason is None:
                continue
            _logger.error("%s: paused, and nothing is parked meanwhile: %s", self._prefix, reason)
            await self._say(reason)
            while self._is_paused():
                await self._sleep(self._outage.next_probe_s())
                if self._is_paused():
                    self._probe()
            _logger.warning("%s: goes on, since an event was handled again", self._prefix)
            await self._say(None)

    def _is_paused(self) -> bool:
        return self._outage.reason is not None

    async def _sleep(self, seconds: float) -> None:
        waits = [asyncio.ensure_future(self._changed.wait()), asyncio.ensure_future(self._clock.sleep(seconds))]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        self._changed.clear()

    def _probe(self) -> None:
        """Let one event be tried: in turns something new and something that has failed before, where there are both."""
        if self._permits and not (self._held_is_next and self._held() is not None):
            self._new_is_tried = self._held_is_next = True
            permit = self._permits.pop(0)
            if not permit.done():
                permit.set_result(None)
            return
        held = self._held()
        new = None if self._held_is_next and held is not None else self._new()
        if new is not None:
            self._new_is_tried = self._held_is_next = True
            self._start(new)
        elif held is not None:
            self._held_is_next = False
            held.is_due = True
            self._start(held)

    def _start(self, lane: Lane) -> None:
        lane.is_probe = True
        self._lanes.schedule(lane)

    def _new(self) -> Lane | None:
        for lane in self._lanes.by_key.values():
            if lane.pending and not lane.held and not lane.is_running and lane.work.is_open:
                return lane
        return self._host.take_one()

    def _held(self) -> Lane | None:
        """Return the lane that waits for its next attempt for the longest time."""
        blocked = [
            lane
            for lane in self._lanes.by_key.values()
            if lane.held and not lane.is_running and lane.work.is_open and (lane.is_due or lane.due_us is not None)
        ]
        return min(blocked, key=lambda lane: lane.due_us or 0, default=None)

    async def _say(self, reason: str | None) -> None:
        try:
            await self._store.pause(self._name, reason)
        except StoreError as error:
            _logger.warning("%s: the pause is not shown in the status: %s", self._prefix, error)
