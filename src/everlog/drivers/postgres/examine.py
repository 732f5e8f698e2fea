"""Looking at a schema and its server without changing anything, for `everlog doctor`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import sql

from everlog.clock import AHEAD_US, Clock
from everlog.drivers.postgres.place import Place
from everlog.drivers.postgres.schema import Kind, check, connected
from everlog.errors import LogUnreachable, StartRefused, StoreUnreachable
from everlog.finding import Examined, Finding, Judgement, Level

_OLDEST: Final = 130_000
_FEW_CONNECTIONS: Final = 20
_SERVER: Final = """
    SELECT current_setting('server_version_num')::integer, current_setting('server_version'), current_setting('fsync'),
        current_setting('full_page_writes'), current_setting('synchronous_commit'), current_setting('data_checksums'),
        (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
        current_setting('max_connections')::integer - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
        has_database_privilege(current_database(), 'CREATE')
"""

Look = Callable[[psycopg.AsyncConnection[Any]], Awaitable[Examined]]
"""Looks at the tables of a kind, with a connection whose `search_path` is the schema."""


class Subject(NamedTuple):
    """What is looked at."""

    name: str
    place: Place
    kind: Kind
    missing: str
    """What to do where there is nothing yet."""


async def examine(subject: Subject, look: Look, *, clock: Clock) -> Examined:
    """Return what is found out about a server, a schema and what is in it."""
    name = subject.name
    try:
        async with connected(subject.place, subject.kind) as connection:
            row = await (await connection.execute(_SERVER)).fetchone()
            assert row is not None
            findings = [Finding(name, what, *judged) for what, judged in _server(row, clock.wall_us())]
            if not await check(connection, subject.place, subject.kind):
                found = Finding(name, "tables", Level.WARNING, f"there are none at {subject.place.shown}", subject.missing)
                return Examined([*findings, found], None)
            findings.append(Finding(name, "tables", Level.OK, f"{subject.place.shown}, version {subject.kind.version}"))
            path = sql.SQL("SET search_path TO {}").format(sql.Identifier(subject.place.schema))
            await connection.execute(path)
            looked = await look(connection)
            return Examined([*findings, *looked.findings], looked.log)
    except (StartRefused, LogUnreachable, StoreUnreachable) as error:
        return Examined([Finding(name, "server", Level.PROBLEM, str(error))], None)


def _server(row: Sequence[Any], wall_us: int) -> Sequence[tuple[str, Judgement]]:
    number, version, fsync, full_pages, commit, checksums, now_us, connections, may_create = row
    ahead_s = (now_us - wall_us) / 1e6
    return [
        (
            "server",
            Judgement(Level.OK, f"PostgreSQL {version}")
            if number >= _OLDEST
            else Judgement(Level.PROBLEM, f"PostgreSQL {version}", "13 is the oldest that this is made for: upgrade the server"),
        ),
        ("durability", _durability(fsync, full_pages, commit)),
        (
            "checksums",
            Judgement(Level.OK, "on")
            if checksums == "on"
            else Judgement(
                Level.WARNING,
                "off",
                "what a disk changes by itself goes unnoticed: run pg_checksums --enable while it is stopped",
            ),
        ),
        (
            "clock",
            Judgement(Level.OK, f"{abs(ahead_s):.1f} s from this machine's")
            if abs(ahead_s) * 1e6 < AHEAD_US
            else Judgement(
                Level.WARNING,
                f"{ahead_s:+,.0f} s from this machine's",
                "what is published gets the server's time: set the clocks",
            ),
        ),
        (
            "connections",
            Judgement(Level.OK, f"{connections} are free")
            if connections >= _FEW_CONNECTIONS
            else Judgement(Level.WARNING, f"{connections} are free", "a process takes up to 20: raise max_connections"),
        ),
        (
            "rights",
            Judgement(Level.OK, "this role may make schemas")
            if may_create
            else Judgement(Level.OK, "this role makes no schemas", "`everlog migrate` needs one that may"),
        ),
    ]


def _durability(fsync: str, full_pages: str, commit: str) -> Judgement:
    if fsync == "off" or full_pages == "off":
        advice = (
            "an acknowledged event, or the whole database, may be gone after a power cut: set fsync and full_page_writes to on"
        )
        return Judgement(Level.PROBLEM, f"fsync is {fsync}, full_page_writes is {full_pages}", advice)
    if commit == "off":
        advice = "an acknowledged event may be gone after a crash of the server: set synchronous_commit to on for this role"
        return Judgement(Level.PROBLEM, "synchronous_commit is off", advice)
    return Judgement(Level.OK, f"synchronous_commit is {commit}")
