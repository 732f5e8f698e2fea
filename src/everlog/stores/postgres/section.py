"""A section: statements of a handler on tables of the app's own, in the store's database and in one transaction with the handler's unit.

It has the turn from its beginning to its end. A handler that blocks its own event loop does not keep it: what a piece may last is told to the
server too, which ends the transaction.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, Final, NoReturn, TypeVar, cast

import psycopg
from psycopg import sql
from psycopg.raw_cursor import AsyncRawCursor
from psycopg_pool import PoolTimeout

from everlog.drivers.postgres.database import Connection, Database, first_line
from everlog.errors import SqlFailed, SqlRefused, SqlTimeout, StoreError, StoreReadOnly
from everlog.store import Lease, Outcome, Progress, Slot, StateKey, Unit, Versioned
from everlog.stores.postgres.commit import commit
from everlog.stores.postgres.names import names
from everlog.stores.postgres.state import read, scan
from everlog.stores.postgres.statements import Statement, statements_of
from everlog.stores.postgres.tables import TURN

T = TypeVar("T")

_IDLE_S: Final = 0.5
"""How long the server waits between two statements before it ends the transaction, beside what a piece may last."""
_GRACE_S: Final = 0.05
"""So much longer than a piece may take, so that its owner ends it first and can say why."""
_PARAMETERS: Final = (type(None), int, float, str, bytes)
_INTEGERS: Final = range(-(2**63), 2**63)
_LOST: Final = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.IdleInTransactionSessionTimeout)


class PostgresSection:
    """A `Section` on a store in PostgreSQL.

    Args:
        database: Where.
        turn: The store's turn in this process.
    """

    def __init__(self, database: Database, turn: asyncio.Lock) -> None:
        self._database = database
        self._turn = turn
        self._held = AsyncExitStack()
        self._connection: Connection
        self._paths: tuple[str, str] = ("", "")
        self._until_s: float | None = None  # of the piece
        self._is_over = False
        self._is_committed = False

    async def begin(self) -> None:
        """Wait for the turn, and begin the transaction.

        Raises:
            StoreReadOnly: The server does not answer.
        """
        try:
            await self._held.enter_async_context(self._turn)
            self._connection = await self._held.enter_async_context(self._database.connection())
            await self._connection.execute(TURN)
            self._paths = (
                f"SET LOCAL search_path TO {self._database.app_path}",
                sql.SQL("SET LOCAL search_path TO {}").format(sql.Identifier(self._database.place.schema)).as_string(None),
            )
        except (psycopg.Error, PoolTimeout) as error:
            await self._close()
            raise StoreReadOnly(
                f"{self._database.place.shown} takes no writes ({first_line(error)}): nothing was stored"
            ) from error
        except BaseException:
            await self._close()
            raise

    @property
    def has_ended(self) -> bool:
        return not self._is_committed and (self._is_over or self._is_late)

    @property
    def _is_late(self) -> bool:
        return self._until_s is not None and time.monotonic() > self._until_s + _GRACE_S

    async def mark(self, *, within_s: float) -> None:
        await self._check()
        statement_ms, idle_ms = max(1, round(within_s * 1000)), round((within_s + _IDLE_S) * 1000)
        await self._do(
            lambda connection: connection.execute(
                cast(
                    "Any",
                    f"SET LOCAL statement_timeout TO {statement_ms}; SET LOCAL idle_in_transaction_session_timeout TO {idle_ms}; SAVEPOINT piece",
                )
            )
        )
        self._until_s = time.monotonic() + within_s

    async def execute(self, query: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        _check_parameters(parameters)
        statements = statements_of(query, own_schema=self._database.place.schema)
        for one in statements:
            if one.refused is not None:
                raise SqlRefused(f"tx.sql: {one.refused} (in {_shown(query)})")
        if sum(one.parameters for one in statements) != len(parameters):
            raise SqlFailed(
                f"tx.sql: expected {sum(one.parameters for one in statements)} parameters, one for each `?`, found {len(parameters)} (in "
                f"{_shown(query)})"
            )
        await self._check()
        connection = self._connection
        try:
            await connection.execute(cast("Any", f"{self._paths[0]}; SAVEPOINT call"))
            try:
                rows = await self._run(statements, parameters)
            except BaseException:
                if not connection.closed:
                    await connection.execute(cast("Any", f"ROLLBACK TO call; RELEASE call; {self._paths[1]}"))
                raise
            await connection.execute(cast("Any", f"RELEASE call; {self._paths[1]}"))
        except psycopg.errors.QueryCanceled as error:
            raise SqlTimeout(
                f"tx.sql: a statement was broken off, since the handler has had the store for itself for too long: make it cheaper (in "
                f"{_shown(query)})"
            ) from error
        except _LOST as error:
            await self._lose(error)
        except (psycopg.Error, UnicodeEncodeError) as error:
            raise SqlFailed(f"tx.sql: {first_line(error)} (in {_shown(query)})") from error
        return rows

    async def _run(self, statements: Sequence[Statement], parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = []
        at = 0
        async with AsyncRawCursor(self._connection) as cursor:
            for one in statements:
                values = parameters[at : at + one.parameters]
                at += one.parameters
                # Prepared: so the server takes one statement at a time.
                await cursor.execute(cast("Any", one.text), values, prepare=True)
                if cursor.description is not None:
                    rows.extend(await cursor.fetchall())
        return rows

    async def keep(self) -> None:
        await self._end_piece("RELEASE piece")

    async def undo(self) -> None:
        await self._end_piece("ROLLBACK TO piece; RELEASE piece")

    async def _end_piece(self, statement: str) -> None:
        await self._check()
        self._until_s = None
        await self._do(
            lambda connection: connection.execute(cast("Any", f"{statement}; SET LOCAL statement_timeout TO 0; {self._paths[1]}"))
        )

    async def read(self, keys: Sequence[StateKey]) -> Sequence[Versioned]:
        async def done(connection: Connection) -> Sequence[Versioned]:
            return await read(connection, await names(connection), keys)

        return await self.do(done)

    async def scan(self, state: str, prefix: str) -> Sequence[tuple[str, Versioned]]:
        async def done(connection: Connection) -> Sequence[tuple[str, Versioned]]:
            return await scan(connection, await names(connection), state, prefix)

        return await self.do(done)

    async def apply(
        self, units: Sequence[Unit], leases: Sequence[Lease], progress: Sequence[tuple[Slot, Progress]] = ()
    ) -> Sequence[Outcome]:
        return await self.do(lambda connection: commit(connection, units, leases, progress))

    async def do(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run something of ours inside the transaction, and return what it returned."""
        await self._check()
        return await self._do(work)

    async def _do(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        try:
            return await work(self._connection)
        except psycopg.errors.QueryCanceled as error:
            await self.roll_back()
            raise _too_long() from error
        except _LOST as error:
            await self._lose(error)

    async def commit(self) -> None:
        await self._check()
        self._is_over = self._is_committed = True
        try:
            await self._connection.execute("COMMIT")
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            if self._connection.closed:
                raise StoreError(
                    f"the commit failed ({first_line(error)}): whether it is stored shows when the slots are taken anew"
                ) from error
            raise StoreReadOnly(f"the store could not be written ({first_line(error)}): nothing was stored") from error
        finally:
            await self._close()
        self._database.bell.ring()

    async def roll_back(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        await self._close()

    async def _check(self) -> None:
        """Refuse what comes too late."""
        if self._is_over:
            raise _too_long()
        if self._is_late:
            await self.roll_back()
            raise _too_long()

    async def _lose(self, error: BaseException) -> NoReturn:
        """Give up a transaction that the server has ended: it was too long, or the server went away."""
        was_late = self._until_s is not None and time.monotonic() > self._until_s
        await self.roll_back()
        if was_late or isinstance(error, psycopg.errors.IdleInTransactionSessionTimeout):
            raise _too_long() from error
        raise StoreReadOnly(f"{self._database.place.shown} went away ({first_line(error)}): nothing was stored") from error

    async def _close(self) -> None:
        connection = getattr(self, "_connection", None)
        if connection is not None and not connection.closed:
            with suppress(psycopg.Error):
                if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                    await connection.execute("ROLLBACK")
                await self._database.make_clean(connection)  # what a function may have set for the session
        await self._held.aclose()


def _check_parameters(parameters: Sequence[object]) -> None:
    for number, parameter in enumerate(parameters, start=1):
        if not isinstance(parameter, _PARAMETERS):
            raise SqlRefused(
                f"parameter {number} of tx.sql is a {type(parameter).__name__}: expected None, int, float, str or bytes"
            )
        if isinstance(parameter, int) and parameter not in _INTEGERS:
            raise SqlFailed(f"parameter {number} of tx.sql is {parameter}, which has more than 64 bits")


def _too_long() -> SqlTimeout:
    return SqlTimeout("the handler has had the store for itself for too long: all that it did is taken back, and it runs again")


def _shown(query: str) -> str:
    line = " ".join(query.split())
    return repr(line if len(line) <= 100 else line[:99] + "…")
