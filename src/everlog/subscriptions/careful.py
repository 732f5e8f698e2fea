"""Careful: the right to run handlers that may kill the process, one group at a time, so that the right one is found."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from everlog.clock import Clock
from everlog.errors import StoreReadOnly
from everlog.store import Attempt, Lease, Store

_PAUSE_S: Final = 1.0

_logger: Final = logging.getLogger("everlog")


class Careful:
    """A lock for all apps of a process, used with `async with`, that can also be asked without waiting."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._users = 0
        self._waiting: list[Callable[[], None]] = []

    async def __aenter__(self) -> None:
        self._users += 1
        try:
            await self._lock.acquire()
        except BaseException:
            self._users -= 1
            raise

    async def __aexit__(self, *error: object) -> None:
        self._lock.release()
        self.leave()

    def reserve(self) -> None:
        """Let nobody find it free until `leave` who does not wait for it. Those who do enter it one after another as ever."""
        self._users += 1

    def leave(self) -> None:
        """End a reservation."""
        self._users -= 1
        if not self._users:
            waiting, self._waiting = self._waiting, []
            for look in waiting:
                look()

    def is_free(self, otherwise: Callable[[], None]) -> bool:
        """Tell whether it can be entered without waiting; where it cannot, `otherwise` is called when everybody has left it."""
        if self._users:
            self._waiting.append(otherwise)
        return not self._users


async def note(store: Store, clock: Clock, lease: Lease, attempt: Attempt | None) -> None:
    """Store what is about to be tried, or that it has ended; where the store takes no writes, again and again.

    Raises:
        LeaseLost: Another process owns the slot.
    """
    while True:
        try:
            return await store.attempt(lease, attempt)
        except StoreReadOnly as error:
            _logger.error("what may kill the process waits, and nothing is lost; trying again in %g s: %s", _PAUSE_S, error)
            await clock.sleep(_PAUSE_S)
