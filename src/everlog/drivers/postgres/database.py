"""One schema of a database: connections, transactions that are stored, not stored or unknown, and reading.

    write ──► pool ──► BEGIN · the work · COMMIT ──► bell
    read  ──► pool ──► the work, once more on a new connection where the server was restarted meanwhile

An error before COMMIT is sent means that nothing is stored. One that comes instead of its answer means that nobody can say.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, LiteralString, TypeVar

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from everlog.drivers.postgres.bell import Bell
from everlog.drivers.postgres.place import Place
from everlog.drivers.postgres.schema import Kind, check, connected, create
from everlog.errors import Closed, EverlogError

T = TypeVar("T")
Connection = psycopg.AsyncConnection[TupleRow]
"""A connection whose `search_path` is the schema."""

_CONNECT_S: Final = 10.0
"""How long opening, reading and writing wait for a server that does not answer."""
_MOST_CONNECTIONS: Final = 8
_END_IDLE: Final = "SET idle_in_transaction_session_timeout TO 5000"
"""After so long the server ends a transaction whose process was stopped in the middle of it: others wait for what it has locked."""
_READ_AGAIN: Final = 10
_GONE: Final = (psycopg.OperationalError, psycopg.InterfaceError)


class NothingStored(Exception):
    """The transaction was not committed, and never will be."""


class OutcomeUnknown(Exception):
    """The server did not answer to COMMIT."""


class NotRead(Exception):
    """The server could not be read."""


class Database:
    """One schema, for one event loop.

    Args:
        place: Where it is.
        kind: What it holds: its tables are made where they are missing.
    """

    def __init__(self, place: Place, kind: Kind) -> None:
        self.place = place
        self._kind = kind
        self._pid = os.getpid()
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            place.conninfo,
            min_size=1,
            max_size=_MOST_CONNECTIONS,
            open=False,
            kwargs={"autocommit": True},
            configure=self._configure,
            reconnect_timeout=_CONNECT_S,
        )
        self.bell = Bell(place.conninfo, place.channel)
        self.told: Callable[[float], None] | None = None
        """Is told how long each transaction took, in seconds."""
        self.app_path = ""
        """The `search_path` of this role: where the tables of the app's own are."""
        self._writing: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def open(self) -> None:
        """Connect, and make the tables where they are missing.

        Raises:
            StartRefused: The server does not let us in; or the schema is of another version or kind, or missing where this role may not make one.
            LogUnreachable, StoreUnreachable: The server does not answer.
        """
        async with connected(self.place, self._kind) as connection:
            if not await check(connection, self.place, self._kind):
                await create(connection, self.place, self._kind)
        await self._pool.open()

    async def _configure(self, connection: Connection) -> None:
        if not self.app_path:
            ((self.app_path,),) = await (await connection.execute("SHOW search_path")).fetchall()
        await connection.execute(self._settings())

    def _settings(self) -> sql.Composed:
        path = sql.SQL("SET search_path TO {}; ").format(sql.Identifier(self.place.schema))
        return path + sql.SQL(_END_IDLE)

    def prepare(self, connection: psycopg.Connection[Any]) -> None:
        """Set up a connection of somebody's own."""
        connection.execute(self._settings())

    async def make_clean(self, connection: Connection) -> None:
        """Set a connection back to what it was when it was opened, after statements that are not ours."""
        await connection.execute(sql.SQL("RESET ALL; ") + self._settings())

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """Lend a connection that no transaction is open on.

        Raises:
            Closed: This was closed, or belongs to another process.
            PoolTimeout: The server does not answer.
        """
        if self._closed:
            raise Closed(f"{self.place.shown} was closed")
        if os.getpid() != self._pid:
            raise Closed(f"{self.place.shown} was opened before a fork: open it in the process that uses it")
        async with self._pool.connection(timeout=_CONNECT_S) as connection:
            yield connection

    async def read(self, work: Callable[[Connection], Awaitable[T]], *, is_one_moment: bool = False) -> T:
        """Return what `work` reads. It may be called again, on another connection, where the server went away.

        Args:
            work: Changes nothing.
            is_one_moment: All its statements see one moment. A single one does anyway.

        Raises:
            NotRead: The server did not answer for a while.
        """
        for turn in range(_READ_AGAIN):
            try:
                async with self.connection() as connection:
                    if not is_one_moment:
                        return await work(connection)
                    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                    try:
                        return await work(connection)
                    finally:
                        if not connection.closed:
                            await connection.execute("ROLLBACK")
            except (*_GONE, PoolTimeout) as error:
                if isinstance(error, PoolTimeout) or turn == _READ_AGAIN - 1:
                    raise NotRead(first_line(error)) from error
        raise AssertionError("unreachable")

    async def write(self, work: Callable[[Connection], Awaitable[T]], *, begin: LiteralString = "BEGIN") -> T:
        """Run `work` in a transaction, commit it and ring the bell. What was begun goes on where the caller is cancelled.

        Args:
            work: What it raises, if it is one of our errors, takes the transaction back and is raised again.
            begin: The statements that begin the transaction.

        Raises:
            NothingStored: It was not committed.
            OutcomeUnknown: Nobody can say.
        """
        task = asyncio.create_task(self._write(work, begin))
        self._writing.add(task)
        task.add_done_callback(self._written)
        return await asyncio.shield(task)

    def _written(self, task: asyncio.Task[Any]) -> None:
        self._writing.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, since nobody may wait for it any more

    async def _write(self, work: Callable[[Connection], Awaitable[T]], begin: LiteralString) -> T:
        began_s = time.monotonic()
        try:
            async with self._begun(begin) as connection:
                try:
                    result = await work(connection)
                except (EverlogError, psycopg.Error):
                    if not connection.closed:
                        await connection.execute("ROLLBACK")
                    raise
                await self._commit(connection)
        except (psycopg.Error, PoolTimeout) as error:
            raise NothingStored(first_line(error)) from error
        if self.told is not None:
            self.told(time.monotonic() - began_s)
        self.bell.ring()
        return result

    @asynccontextmanager
    async def _begun(self, begin: LiteralString) -> AsyncGenerator[Connection]:
        """Lend a connection on which a transaction has begun; one that broke while nobody used it is passed over."""
        for turn in range(_MOST_CONNECTIONS + 1):
            async with self.connection() as connection:
                try:
                    await connection.execute(begin)
                except _GONE:
                    if turn == _MOST_CONNECTIONS or not connection.closed:
                        raise
                    continue
                yield connection
                return

    async def _commit(self, connection: Connection) -> None:
        try:
            await connection.execute("COMMIT")
        except _GONE as error:
            if connection.closed:
                raise OutcomeUnknown(first_line(error)) from error
            raise

    async def aclose(self) -> None:
        """Finish what was begun, and let go of every connection. Idempotent."""
        if self._closed:
            return
        while self._writing:
            await asyncio.gather(*self._writing, return_exceptions=True)
        self._closed = True
        await self.bell.aclose()
        await self._pool.close(timeout=_CONNECT_S)


def first_line(error: BaseException) -> str:
    """Return an error of the driver in one line. It holds no password: libpq does not put one in."""
    return " ".join(str(error).split()) or type(error).__name__
