"""A transaction of the user's own, to put rows into: a connection of psycopg, SQLAlchemy or Django, whatever driver these use.

Nothing is begun, committed or rolled back here. What is wrong with the connection is said before anything is sent, where it can be seen.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, LiteralString, NamedTuple

import psycopg
from psycopg import sql

from everlog.errors import StoreError

_MISSING: Final = frozenset({"42P01", "3F000", "42501"})
"""No such table, no such schema, no right to it."""


class Row(NamedTuple):
    """An event for the table of what is staged."""

    topic: str
    partition: int
    key: bytes | None
    record: bytes


class Staging:
    """Puts rows into a schema's table `staged`, in the transaction of a connection that it is given.

    Args:
        schema, channel: The store's, and the one that its bell rings on.
        identity: The store's: another database may hold a schema of the same name.
        shown: The store as it may be printed.
    """

    def __init__(self, schema: str, channel: str, identity: object, shown: str) -> None:
        self._identity = str(identity)
        self._channel = channel
        self._shown = shown
        name = sql.Identifier(schema).as_string(None)
        # Only where the store itself is: without a row of `service` nothing is added.
        self._insert = (
            f"INSERT INTO {name}.staged (topic, partition, key, record) SELECT CAST({{}} AS text), CAST({{}} AS integer), "
            f"CAST({{}} AS bytea), CAST({{}} AS bytea) FROM {name}.service WHERE identity = CAST({{}} AS uuid)"
        )
        # In the transaction, so that it rings when that is committed, and not before.
        self._ring = "SELECT pg_notify(CAST({} AS text), '')"

    def put(self, connection: object, rows: Sequence[Row]) -> None:
        """Put rows into the transaction of a connection that blocks.

        Raises:
            StoreError: It is none, it is not in a transaction, or belongs to another database. Nothing is stored with it.
        """
        if isinstance(connection, psycopg.Connection):
            own: psycopg.Connection[Any] = connection  # pyright: ignore[reportUnknownVariableType] of any rows
            _check_psycopg(own)

            def run(query: str, values: Sequence[object]) -> int:
                return own.execute(_filled(query, "%s"), values).rowcount

            self._each(rows, run)
        elif _kind(connection) == "sqlalchemy" and not _is_async(connection):

            def run_alchemy(query: str, values: Sequence[object]) -> int:
                return int(_alchemy(connection, query, values).rowcount)

            self._each(rows, run_alchemy)
        elif _kind(connection) == "django":
            self._in_django(connection, rows)
        else:
            raise StoreError(
                f"expected a connection of psycopg, SQLAlchemy or Django to the store's database, found {type(connection).__name__}"
                + (": an asynchronous one belongs into `await client.publish(…, within=…)`" if _is_async(connection) else "")
            )

    async def put_async(self, connection: object, rows: Sequence[Row]) -> None:
        """Put rows into the transaction of a connection that is awaited. Raises as `put`."""
        if isinstance(connection, psycopg.AsyncConnection):
            own: psycopg.AsyncConnection[Any] = connection  # pyright: ignore[reportUnknownVariableType] of any rows
            _check_psycopg(own)

            async def run(query: str, values: Sequence[object]) -> int:
                return (await own.execute(_filled(query, "%s"), values)).rowcount

            await self._each_async(rows, run)
            return
        if _kind(connection) == "sqlalchemy" and _is_async(connection):

            async def run_alchemy(query: str, values: Sequence[object]) -> int:
                return int((await _alchemy(connection, query, values)).rowcount)

            await self._each_async(rows, run_alchemy)
            return
        raise StoreError(
            f"expected a transaction of psycopg's AsyncConnection or SQLAlchemy's AsyncSession on the store's database, found "
            f"{type(connection).__name__}: a connection that blocks belongs into `app.stage(connection, …)`"
        )

    def _in_django(self, connection: Any, rows: Sequence[Row]) -> None:
        if connection.vendor != "postgresql":
            raise self._elsewhere(f"a connection to {connection.vendor}")
        if not connection.in_atomic_block and connection.get_autocommit():
            raise StoreError(
                "expected a transaction to put the event into, found none: stage it inside `with transaction.atomic():`"
            )
        with connection.cursor() as cursor:

            def run(query: str, values: Sequence[object]) -> int:
                cursor.execute(_filled(query, "%s"), list(values))
                return int(cursor.rowcount)

            self._each(rows, run)

    def _each(self, rows: Sequence[Row], run: Callable[[str, Sequence[object]], int]) -> None:
        try:
            for row in rows:
                self._check_added(run(self._insert, (*row, self._identity)))
            run(self._ring, (self._channel,))
        except Exception as error:
            self._translate(error)
            raise

    async def _each_async(self, rows: Sequence[Row], run: Callable[[str, Sequence[object]], Awaitable[int]]) -> None:
        try:
            for row in rows:
                self._check_added(await run(self._insert, (*row, self._identity)))
            await run(self._ring, (self._channel,))
        except Exception as error:
            self._translate(error)
            raise

    def _check_added(self, count: int) -> None:
        if count != 1:
            raise self._elsewhere("a database with another store in it")

    def _translate(self, error: BaseException) -> None:
        """Say what an error of the driver means, where it means that this is not the store's database."""
        if _state_of(error) in _MISSING:
            raise self._elsewhere("a database in which this connection cannot reach it") from error

    def _elsewhere(self, found: str) -> StoreError:
        return StoreError(
            f"expected a connection to the database of the store ({self._shown}), found {found}: the event can only be committed together "
            f"with rows of that database; roll this transaction back"
        )


def _filled(query: str, mark: LiteralString) -> Any:
    return query.replace("{}", mark)


def _check_psycopg(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    if connection.autocommit and connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
        raise StoreError(
            "expected a transaction to put the event into, found none: publish inside `with connection.transaction():`"
        )


def _kind(connection: object) -> str:
    """Return what a connection is of: `sqlalchemy`, `django`, or nothing that is known."""
    for cls in type(connection).__mro__:
        package = cls.__module__.partition(".")[0]
        if package in ("sqlalchemy", "django"):
            return package
    return ""


def _is_async(connection: object) -> bool:
    return any(cls.__name__.startswith("Async") for cls in type(connection).__mro__)


def _alchemy(connection: Any, query: str, values: Sequence[object]) -> Any:
    """Run a statement on a session or connection of SQLAlchemy: its result, or what is awaited for it."""
    text = importlib.import_module("sqlalchemy").text
    bind = connection.get_bind() if hasattr(connection, "get_bind") else connection
    name = bind.dialect.name
    if name != "postgresql":
        raise StoreError(f"expected a connection to the database of the store, found one to {name}: roll this transaction back")
    names = [f"v{number}" for number in range(len(values))]
    for one in names:
        query = query.replace("{}", f":{one}", 1)
    return connection.execute(text(query), dict(zip(names, values, strict=True)))


def _state_of(error: BaseException | None) -> str | None:
    """Return the SQLSTATE of an error of whichever driver: wrapped by SQLAlchemy (`orig`) or by Django (`__cause__`)."""
    seen = 0
    while error is not None and seen < 4:
        for name in ("sqlstate", "pgcode"):
            state = getattr(error, name, None)
            if isinstance(state, str):
                return state
        error = getattr(error, "orig", None) or error.__cause__
        seen += 1
    return None
