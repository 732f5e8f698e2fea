"""Looking at a log in PostgreSQL without opening it, for `everlog doctor`."""

from __future__ import annotations

from typing import Any, Final

import psycopg

from everlog.clock import Clock
from everlog.drivers.postgres.examine import Subject, examine
from everlog.drivers.postgres.place import place_of
from everlog.finding import Examined, Finding, Level
from everlog.logs.postgres.log import SCHEMA
from everlog.logs.postgres.tables import LOG

_SUBJECT: Final = "log"
_HELD: Final = """
    SELECT count(*) FROM pg_inherits AS i JOIN topic AS t ON i.inhparent = format('chunk_%s', t.id)::regclass
"""


async def examine_log(url: str, *, clock: Clock) -> Examined:
    """Return what is found out about the log that a URL names, also if the server does not answer. Changes nothing."""

    async def look(connection: psycopg.AsyncConnection[Any]) -> Examined:
        ((identity,),) = await (await connection.execute("SELECT identity FROM identity")).fetchall()
        ((topics, newest_us),) = await (
            await connection.execute("SELECT (SELECT count(*) FROM topic), (SELECT max(logged_at_us) FROM part)")
        ).fetchall()
        ((segments,),) = await (await connection.execute(_HELD)).fetchall()
        ago = (
            "nothing was written yet" if not newest_us else f"last written {max(0, clock.wall_us() - newest_us) / 1e6:,.0f} s ago"
        )
        found = f"{ago}; {topics} topic{'s' if topics != 1 else ''} in {segments} segment{'s' if segments != 1 else ''}"
        return Examined([Finding(_SUBJECT, "time", Level.OK, found)], identity)

    missing = "publish an event, run an app, or say where it is with --log-url"
    return await examine(Subject(_SUBJECT, place_of(url, schema=SCHEMA), LOG, missing), look, clock=clock)
