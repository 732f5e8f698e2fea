"""The bell: LISTEN and NOTIFY on a channel of each log and store, that wakes who waits in other processes.

NOTIFY takes a lock of the whole server while its transaction commits, so it is never part of a transaction that stores something: it is
sent behind the commit, and what is committed while one is under way shares the next. The tables are the truth; whoever waits looks again
now and then, since a process may die between its commit and the bell.

It has a connection of its own for each process, opened when somebody first waits.
"""

from __future__ import annotations

import asyncio
from typing import Final
from uuid import uuid4

import psycopg
from psycopg import sql

BACKSTOP_S: Final = 5.0
"""Waiting readers look again after this long."""
_RETRY_S: Final = (0.05, 0.2, 0.5, 1.0, 2.0)


def _end(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Bell:
    """Rung by every committer, heard by everyone who waits. For one event loop."""

    def __init__(self, conninfo: str, channel: str) -> None:
        self._conninfo = conninfo
        self._channel = channel
        self._own = uuid4().hex
        self._waiters: set[asyncio.Future[None]] = set()
        self._asked = asyncio.Event()
        self._ringing: asyncio.Task[None] | None = None
        self._hearing: asyncio.Task[None] | None = None
        self._closed = False
        self.strokes = 0
        """How often it was heard: read it before you look, and give it to `wait`."""

    def ring(self) -> None:
        """Tell everyone, here at once and elsewhere soon, that something was committed."""
        self.wake()
        self._asked.set()
        if self._ringing is None and not self._closed:
            self._ringing = asyncio.create_task(self._ring(), name="everlog bell: ring")

    def wake(self) -> None:
        """Wake everyone who waits in this process, as a stroke does."""
        self.strokes += 1
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            _end(waiter)

    async def wait(self, strokes: int, seconds: float = BACKSTOP_S) -> None:
        """Return at the first stroke after the `strokes`-th, or after `seconds`."""
        if self.strokes != strokes or self._closed:
            return
        if self._hearing is None:
            self._hearing = asyncio.create_task(self._hear(), name="everlog bell: hear")
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters.add(waiter)
        timer = loop.call_later(seconds, _end, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiters.discard(waiter)

    async def _ring(self) -> None:
        failures = 0
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True) as connection:
                    while True:
                        await self._asked.wait()
                        self._asked.clear()
                        await connection.execute("SELECT pg_notify(%s, %s)", (self._channel, self._own), prepare=True)
                        failures = 0
            except psycopg.Error:  # nobody hears it: they look by themselves after a while
                self._asked.set()
                await asyncio.sleep(_RETRY_S[min(failures, len(_RETRY_S) - 1)])
                failures += 1

    async def _hear(self) -> None:
        failures = 0
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True) as connection:
                    await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
                    failures = 0
                    self.wake()  # for what was rung before it listened
                    async for stroke in connection.notifies():
                        if stroke.payload != self._own:
                            self.wake()
            except psycopg.Error:
                await asyncio.sleep(_RETRY_S[min(failures, len(_RETRY_S) - 1)])
                failures += 1

    async def aclose(self) -> None:
        """Listen no more; who waits is woken. A stroke that was asked for is sent first, where the server answers within a second."""
        self._closed = True
        self.wake()
        if self._ringing is not None and self._asked.is_set():
            try:
                async with (
                    asyncio.timeout(1.0),
                    await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True) as connection,
                ):
                    await connection.execute("SELECT pg_notify(%s, %s)", (self._channel, self._own))
            except (psycopg.Error, TimeoutError):
                pass
        for task in (self._ringing, self._hearing):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
