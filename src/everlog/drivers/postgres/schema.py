"""The tables of a schema: made where they are missing, refused where they are of another version, upgraded by `everlog migrate`.

Each schema has one table `meta`, with one row that says of what kind and version it is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast

import psycopg
from psycopg import sql

from everlog.drivers.postgres.place import Place
from everlog.errors import LogUnreachable, StartRefused, StoreUnreachable

NOW: Final = """
CREATE FUNCTION now_us() RETURNS bigint LANGUAGE sql VOLATILE PARALLEL SAFE AS
$$ SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint $$;
"""
"""The time of the server, in microseconds since 1970 UTC: the one clock that all processes share."""
_NOT_LET_IN: Final = ("authentication failed", "does not exist", "no password supplied", "pg_hba.conf", "not permitted to log in")
"""What libpq says where waiting does not help; its errors of connecting carry no SQLSTATE."""
_META: Final = """
CREATE TABLE meta (kind text NOT NULL, version integer NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a schema holds.

    Attributes:
        name: `log` or `store`.
        version: Of its tables.
        tables: The statements that make them.
        steps: From each older version, the statements that lead to the next one.
    """

    name: str
    version: int
    tables: str
    steps: Mapping[int, str] = field(default_factory=dict[int, str])


async def version_of(connection: psycopg.AsyncConnection[Any], place: Place) -> tuple[str, int] | None:
    """Return kind and version of what is in the schema; ``None`` where it holds nothing of ours."""
    try:
        asked = await connection.execute("SELECT to_regclass(format('%%I.meta', %s::text)) IS NOT NULL", (place.schema,))
        found = await asked.fetchone()
        if found is None or not found[0]:
            return None
        asked = await connection.execute(sql.SQL("SELECT kind, version FROM {}.meta").format(sql.Identifier(place.schema)))
        row = await asked.fetchone()
    except psycopg.errors.InsufficientPrivilege as error:
        raise StartRefused(
            f"{place.shown}: this role may not read what is there: let its owner run GRANT USAGE ON SCHEMA and GRANT SELECT, INSERT, UPDATE, "
            f"DELETE, TRUNCATE ON ALL TABLES IN SCHEMA for it"
        ) from error
    except psycopg.errors.UndefinedColumn as error:
        raise StartRefused(
            f"{place.shown}: the schema holds tables of somebody else: name another one with ?schema=NAME"
        ) from error
    return None if row is None else (str(row[0]), int(row[1]))


async def check(connection: psycopg.AsyncConnection[Any], place: Place, kind: Kind) -> bool:
    """Tell whether the schema holds what it should.

    Raises:
        StartRefused: It holds something else, or another version.
    """
    found = await version_of(connection, place)
    if found is None:
        return False
    name, version = found
    if name != kind.name:
        raise StartRefused(
            f"{place.shown} holds a {name}, and a {kind.name} was asked for: name another schema with ?schema=NAME"
        )
    if version > kind.version:
        raise StartRefused(
            f"{place.shown} has tables of version {version}, and this Everlog knows {kind.version}: upgrade Everlog"
        )
    if version < kind.version:
        raise StartRefused(
            f"{place.shown} has tables of version {version}, and this Everlog needs {kind.version}: run `everlog migrate`, "
            f"which upgrades them step by step"
        )
    return True


async def create(connection: psycopg.AsyncConnection[Any], place: Place, kind: Kind) -> bool:
    """Make the tables, in one transaction; of several processes one does.

    Raises:
        StartRefused: This role may not.
    """
    schema = sql.Identifier(place.schema)
    try:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"everlog {place.schema}",))
            if await check(connection, place, kind):
                return True
            await connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(schema))
            await connection.execute(sql.SQL("SET LOCAL search_path TO {}").format(schema))
            # A string of ours: `execute` wants one that was written down.
            await connection.execute(cast("Any", _META + NOW + kind.tables))
            await connection.execute("INSERT INTO meta (kind, version) VALUES (%s, %s)", (kind.name, kind.version))
    except psycopg.errors.InsufficientPrivilege as error:
        raise StartRefused(
            f"{place.shown} is empty, and this role may not make its tables: run `everlog migrate` once with a role that may create a schema, "
            f"and let it grant this one SELECT, INSERT, UPDATE, DELETE and TRUNCATE on all tables in it"
        ) from error
    except psycopg.errors.DuplicateTable as error:
        raise StartRefused(
            f"{place.shown}: the schema holds tables of somebody else: name another one with ?schema=NAME"
        ) from error
    return True


async def is_missing(place: Place, kind: Kind) -> bool:
    """Tell whether nothing of ours is in the schema.

    Raises:
        StartRefused: Something else is there, or the server does not let us in.
        LogUnreachable, StoreUnreachable: It does not answer.
    """
    async with connected(place, kind) as connection:
        return not await check(connection, place, kind)


async def migrate(place: Place, kind: Kind) -> Sequence[int]:
    """Bring the tables to the version of this Everlog, a step a transaction; make them where they are missing. Return the versions reached.

    Raises:
        StartRefused: They are newer, or of something else, or this role may not change them.
    """
    reached: list[int] = []
    async with connected(place, kind) as connection:
        while True:
            found = await version_of(connection, place)
            if found is None:
                await create(connection, place, kind)
                return [kind.version]
            name, version = found
            if name != kind.name or version >= kind.version:
                await check(connection, place, kind)
                return reached
            if await _step(connection, place, kind, version):
                reached.append(version + 1)


async def _step(connection: psycopg.AsyncConnection[Any], place: Place, kind: Kind, version: int) -> bool:
    """Go from one version to the next; tell whether this process did, and not another one at the same time."""
    try:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"everlog {place.schema}",))
            if await version_of(connection, place) != (kind.name, version):
                return False
            await connection.execute(sql.SQL("SET LOCAL search_path TO {}").format(sql.Identifier(place.schema)))
            await connection.execute(cast("Any", kind.steps[version]))
            await connection.execute("UPDATE meta SET version = %s", (version + 1,))
    except psycopg.errors.InsufficientPrivilege as error:
        raise StartRefused(
            f"{place.shown}: this role may not change its tables: run `everlog migrate` with the one that owns them"
        ) from error
    return True


@asynccontextmanager
async def connected(place: Place, kind: Kind) -> AsyncGenerator[psycopg.AsyncConnection[Any]]:
    """Lend a connection of its own.

    Raises:
        StartRefused: The server does not let us in.
        LogUnreachable, StoreUnreachable: It does not answer, by what the place holds. It may be there later.
    """
    try:
        connection = await psycopg.AsyncConnection.connect(place.conninfo, autocommit=True)
    except psycopg.ProgrammingError as error:  # libpq names the parameter, and not its value
        raise StartRefused(f"{place.shown}: {' '.join(str(error).split())}: correct the URL") from error
    except psycopg.OperationalError as error:
        said = " ".join(str(error).split())
        if any(words in said for words in _NOT_LET_IN):
            raise StartRefused(
                f"{place.shown} does not let us in ({said}): name the right user, password and database"
            ) from error
        unreachable = LogUnreachable if kind.name == "log" else StoreUnreachable
        raise unreachable(f"{place.shown} does not answer ({said}): start the server, or name the right host and port") from error
    async with connection:
        yield connection
