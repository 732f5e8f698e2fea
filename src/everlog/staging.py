"""Events in transactions of the app's own: the store that takes them, and a relay that sends what was committed.

Whoever stages events competes for the relay's lease with the workers of the app, so that they are sent though no worker runs.
"""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Final

from everlog.clock import Clock
from everlog.errors import EverlogError, FeatureMissing, StartRefused
from everlog.log import Log
from everlog.settings import Settings, open_store
from everlog.store import Store
from everlog.subscriptions.relay import Relay

_ALIVE_S: Final = 30.0
_TURN_EVERY_S: Final = 1.0
_AGAIN_S: Final = 1.0

_logger: Final = logging.getLogger("everlog")


class Staging:
    """The store of an app, opened when it is first needed, and its relay. For one event loop.

    Args:
        app: Whose.
        log: Where committed events go.
        settings: Where the store is.
        clock: For waiting.
    """

    def __init__(self, app: str, log: Log, settings: Settings, clock: Clock) -> None:
        self._app = app
        self._log = log
        self._settings = settings
        self._clock = clock
        self._lock = asyncio.Lock()
        self._store: Store | None = None
        self._relay: Relay | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Staging:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def store(self) -> Store:
        """Return the store; from then on what is staged in it is sent.

        Raises:
            FeatureMissing: It is not in a database that an app's own transactions can be in.
            StartRefused: It belongs to another app, or cannot be opened.
        """
        async with self._lock:
            if self._store is None:
                store = await open_store(self._settings, self._app, clock=self._clock)
                try:
                    await self._begin(store)
                except BaseException:
                    await store.aclose()
                    raise
                self._store = store
            return self._store

    async def _begin(self, store: Store) -> None:
        if not store.features.within:
            raise FeatureMissing(
                "publishing in a transaction of your own",
                adapter="this store",
                instead="use a store in the PostgreSQL database that your rows are in, or publish after your commit",
            )
        owner = (await store.status()).app
        if owner not in ("", self._app):
            raise StartRefused(f"the store belongs to app {owner!r}, and this is {self._app!r}: put {{app}} into the store's URL")
        await store.join({}, alive_s=_ALIVE_S)
        self._relay = Relay(self._log, store, clock=self._clock)
        self._tasks = [
            asyncio.create_task(work) for work in (self._relay.run(), self._hear(store, self._relay), self._turn(store))
        ]

    async def _hear(self, store: Store, relay: Relay) -> None:
        while True:
            try:
                await store.wait(self._settings.lease_s / 3)
            except EverlogError as error:
                _logger.warning("%s: what is staged waits: %s", self._app, error)
                await self._clock.sleep(_AGAIN_S)
            relay.wake()

    async def _turn(self, store: Store) -> None:
        while True:
            store.turned()
            await self._clock.sleep(_TURN_EVERY_S)

    async def aclose(self) -> None:
        """Send what is committed and not yet sent, for as long as that takes no longer than the grace period; then let go of the store."""
        if self._store is None or self._relay is None:
            return
        try:
            async with asyncio.timeout(self._settings.grace_s):
                await self._relay.drain()
        except TimeoutError:
            _logger.warning("%s: events wait in the outbox, and none is lost: the next process of the app sends them", self._app)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._store.aclose()
        self._store = None
