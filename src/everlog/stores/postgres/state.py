"""Rows of state, read on whichever connection shows them as the reader should see them; reads that wait together are one statement."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from everlog.drivers.postgres.database import Connection
from everlog.rules.applying import span_of
from everlog.rules.names import Names
from everlog.store import StateKey, Versioned
from everlog.stores.postgres.rows import columns, rows_of

_ROWS: Final = """
    SELECT a.place, s.value, s.version
    FROM unnest(%s::text[], %s::integer[], %s::text[], %s::text[]) WITH ORDINALITY AS a (subscription, generation, state, key, place)
    JOIN state AS s USING (subscription, generation, state, key)
"""
_SCAN: Final = """
    SELECT key, value, version FROM state WHERE subscription = %(subscription)s AND generation = %(generation)s AND state = %(state)s
    AND (key >= %(low)s AND key < %(high)s OR key = %(exact)s) ORDER BY key
"""
ABSENT: Final = Versioned(None, 0)


async def read(connection: Connection, known: Names, keys: Sequence[StateKey]) -> list[Versioned]:
    """Return the rows, in the order of `keys`."""
    found = [ABSENT] * len(keys)
    asked = columns([(*known.state(state), state, key) for state, key in keys], 4)
    for place, value, version in await rows_of(connection, _ROWS, asked):
        found[place - 1] = Versioned(bytes(value), version)
    return found


async def scan(connection: Connection, known: Names, state: str, prefix: str) -> list[tuple[str, Versioned]]:
    """Return the rows whose key starts with the whole elements of `prefix`, by key text."""
    subscription, generation = known.state(state)
    low, high, exact = span_of(prefix)
    asked = {
        "subscription": subscription, "generation": generation, "state": state, "low": low, "high": high, "exact": exact
    }  # fmt: skip
    rows = await (await connection.execute(_SCAN, asked, binary=True)).fetchall()
    return [(key, Versioned(bytes(value), version)) for key, value, version in rows]


class _Asked(NamedTuple):
    keys: Sequence[StateKey]
    found: asyncio.Future[list[Versioned]]


class Reading:
    """Reads what handlers ask for: those that wait while one statement is under way are the next.

    Args:
        look: Reads rows, in the order of their keys.
    """

    def __init__(self, look: Callable[[Sequence[StateKey]], Awaitable[list[Versioned]]]) -> None:
        self._look = look
        self._waiting: list[_Asked] = []
        self._task: asyncio.Task[None] | None = None

    async def read(self, keys: Sequence[StateKey]) -> list[Versioned]:
        """Return the committed rows, in the order of `keys`."""
        found: asyncio.Future[list[Versioned]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Asked(keys, found))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="everlog store: read")
        return await found

    async def _run(self) -> None:
        while self._waiting:
            asked, self._waiting = [one for one in self._waiting if not one.found.done()], []
            try:
                rows = await self._look([key for one in asked for key in one.keys])
            except Exception as error:  # it belongs to those who asked
                for one in asked:
                    if not one.found.done():
                        one.found.set_exception(error)
                continue
            at = 0
            for one in asked:
                if not one.found.done():
                    one.found.set_result(rows[at : at + len(one.keys)])
                at += len(one.keys)

    async def aclose(self) -> None:
        """Let what is under way end."""
        if self._task is not None:
            await self._task
