"""A section: statements of a handler on its own tables, in the store's file and in one transaction with the handler's unit.

The writer thread serves the section inside the transaction of a group and does nothing else meanwhile:

    event loop ── step ──► queue ──► writer thread: SAVEPOINT · statements · units · RELEASE
               ◄── result ──┘

A piece that keeps it waiting for too long ends the section, so that a handler can block its own event loop and not the file.
"""

from __future__ import annotations

import asyncio
import queue
import re
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, Final, NamedTuple, TypeVar

import apsw

from everlog.drivers.sqlite.rows import rows_of
from everlog.errors import EverlogError, SqlFailed, SqlRefused, SqlTimeout
from everlog.store import Lease, Outcome, Progress, Slot, Unit
from everlog.stores.sqlite.commit import commit
from everlog.stores.sqlite.tables import STORE

T = TypeVar("T")

_IDLE_S: Final = 5.0
"""How long the section waits between pieces, where its owner's own code runs and no handler's."""
_GRACE_S: Final = 0.05
"""So much longer than a piece may take, so that its owner ends it first and can say why."""
_STEPS_PER_LOOK: Final = 1_000
_PREFIX: Final = "everlog_"
"""Names that begin so are kept for tables that the store may get."""
_OURS: Final = frozenset(re.findall(r"CREATE (?:TABLE|INDEX|TRIGGER) (\w+)", STORE.tables)) | {"sqlite_sequence"}

_CONTROLS: Final = {
    apsw.SQLITE_TRANSACTION: "transactions are Everlog's to begin and end",
    apsw.SQLITE_SAVEPOINT: "savepoints are Everlog's to set",
    apsw.SQLITE_ATTACH: "ATTACH: a transaction over several files is not atomic",
    apsw.SQLITE_DETACH: "DETACH",
    apsw.SQLITE_PRAGMA: "PRAGMA: the file's settings are its promises",
    apsw.SQLITE_ANALYZE: "ANALYZE",
}
_MAKES_TEMPORARY: Final = frozenset(
    {
        apsw.SQLITE_CREATE_TEMP_TABLE,
        apsw.SQLITE_CREATE_TEMP_INDEX,
        apsw.SQLITE_CREATE_TEMP_TRIGGER,
        apsw.SQLITE_CREATE_TEMP_VIEW,
    }
)
_MAKES: Final = frozenset(
    {
        apsw.SQLITE_CREATE_TABLE,
        apsw.SQLITE_CREATE_INDEX,
        apsw.SQLITE_CREATE_TRIGGER,
        apsw.SQLITE_CREATE_VIEW,
        apsw.SQLITE_CREATE_VTABLE,
    }
)
_HAS_NO_TABLE: Final = frozenset({apsw.SQLITE_SELECT, apsw.SQLITE_FUNCTION, apsw.SQLITE_RECURSIVE})
_PARAMETERS: Final = (type(None), int, float, str, bytes)


class _Step(NamedTuple):
    function: Callable[[apsw.Connection], object]
    done: asyncio.Future[Any]


class _RolledBack(EverlogError):
    """The owner gave the section up: nothing of it is stored."""


def why_refused(operation: int, first: str | None, second: str | None) -> str | None:
    """Return why a statement may not do this; ``None`` where it may.

    Args:
        operation: The action code of SQLite's authorizer (https://sqlite.org/c3ref/c_alter_table.html).
        first, second: Its arguments: names of what is touched.
    """
    if operation in _CONTROLS:
        return _CONTROLS[operation]
    if operation in _MAKES_TEMPORARY:
        return "temporary tables would stay behind for other handlers"
    if operation in _HAS_NO_TABLE:
        return None
    for name in (first, second):
        if name is not None and name.lower() in _OURS:
            return f"{name} is the store's own: use tx.get, tx.put and the like"
    if operation in _MAKES and first is not None and first.lower().startswith(_PREFIX):
        return f"{first}: names that begin with {_PREFIX} are kept for the store"
    return None


class SqliteSection:
    """A `Section` on a store in one file, or in memory.

    Args:
        waiting: Entered by the writer thread while it waits for the next step.
        wall_us: The wall time, in microseconds since 1970 UTC.
    """

    def __init__(self, waiting: Callable[[], AbstractContextManager[None]], wall_us: Callable[[], int]) -> None:
        self._waiting = waiting
        self._wall_us = wall_us
        self._loop = asyncio.get_running_loop()
        self._steps: queue.SimpleQueue[_Step | None] = queue.SimpleQueue()  # None: the end
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._committed: asyncio.Task[None]
        self._lock = threading.Lock()
        self._is_over = False  # under the lock: the thread takes no more steps
        self._keeps = False
        self._until_s: float | None = None  # of the piece; only in the thread
        self._refused: str | None = None

    # ---- event loop ----

    def begin(self, job: Coroutine[Any, Any, None]) -> None:
        """Queue the job that runs `serve`."""
        self._committed = asyncio.ensure_future(job)
        self._committed.add_done_callback(self._ended)

    def _ended(self, job: asyncio.Task[None]) -> None:
        error = None if job.cancelled() else job.exception()  # looked at, so that nobody is warned of it
        if not self._opened.done():
            self._opened.set_exception(error or SqlTimeout("the store was closed"))

    async def opened(self) -> None:
        """Wait until the transaction has begun."""
        await self._opened

    async def mark(self, *, within_s: float) -> None:
        def marked(connection: apsw.Connection) -> None:
            connection.execute("SAVEPOINT piece")
            self._until_s = time.monotonic() + within_s

        await self._do(marked)

    async def execute(self, query: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        for number, parameter in enumerate(parameters, start=1):
            if not isinstance(parameter, _PARAMETERS):
                raise SqlRefused(
                    f"parameter {number} of tx.sql is a {type(parameter).__name__}: expected None, int, float, str or bytes"
                )
        return await self._do(lambda connection: self._executed(connection, query, parameters))

    async def undo(self) -> None:
        def undone(connection: apsw.Connection) -> None:
            connection.execute("ROLLBACK TO piece")
            connection.execute("RELEASE piece")
            self._until_s = None

        await self._do(undone)

    async def keep(self) -> None:
        def kept(connection: apsw.Connection) -> None:
            connection.execute("RELEASE piece")
            self._until_s = None

        await self._do(kept)

    async def apply(
        self, units: Sequence[Unit], leases: Sequence[Lease], progress: Sequence[tuple[Slot, Progress]] = ()
    ) -> Sequence[Outcome]:
        def applied(connection: apsw.Connection) -> Sequence[Outcome]:
            return commit(connection, units, leases, progress, now_us=self._wall_us())

        return await self._do(applied)

    async def commit(self) -> None:
        self._keeps = True
        self._steps.put(None)
        await asyncio.shield(self._committed)

    async def roll_back(self) -> None:
        self._steps.put(None)
        with suppress(EverlogError):
            await asyncio.shield(self._committed)

    async def _do(self, function: Callable[[apsw.Connection], T]) -> T:
        done: asyncio.Future[T] = self._loop.create_future()
        with self._lock:
            if self._is_over:
                raise _too_long()
            self._steps.put(_Step(function, done))
        return await done

    # ---- writer thread ----

    def serve(self, connection: apsw.Connection) -> None:
        """Carry out the steps inside the transaction of a group, until the end is asked for.

        Raises:
            SqlTimeout: The owner kept the thread waiting. Nothing was changed.
            apsw.Error: SQLite has ended the transaction: nothing of the group is stored.
        """
        connection.execute("SAVEPOINT section")
        self._tell(self._opened, None)
        try:
            self._serve(connection)
            if not self._keeps:
                raise _RolledBack("given up")
            connection.execute("RELEASE section")
        except EverlogError:
            connection.execute("ROLLBACK TO section")
            connection.execute("RELEASE section")
            raise
        finally:
            with self._lock:
                self._is_over = True
            while not self._steps.empty():
                step = self._steps.get()
                if step is not None:
                    self._tell(step.done, _too_long())

    def _serve(self, connection: apsw.Connection) -> None:
        while True:
            left_s = _IDLE_S if self._until_s is None else self._until_s + _GRACE_S - time.monotonic()
            try:
                with self._waiting():
                    step = self._steps.get(timeout=max(0.0, left_s))
            except queue.Empty:
                raise _too_long() from None
            if step is None:
                return
            try:
                result = step.function(connection)
            except EverlogError as error:
                self._tell(step.done, error)
            except BaseException as error:
                self._tell(step.done, SqlFailed(str(error)))
                raise
            else:
                self._tell(step.done, result)

    def _executed(self, connection: apsw.Connection, query: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        until_s = self._until_s
        self._refused = None
        connection.authorizer = self._authorize
        if until_s is not None:
            connection.set_progress_handler(lambda: time.monotonic() > until_s, _STEPS_PER_LOOK)
        try:
            return rows_of(connection, query, tuple(parameters))
        except apsw.InterruptError as error:
            if not connection.in_transaction:  # https://sqlite.org/c3ref/interrupt.html: a write that is broken off can end it
                raise
            raise _too_long() from error
        except apsw.AuthError as error:
            raise SqlRefused(f"tx.sql: {self._refusal()} (in {_shown(query)})") from error
        except (apsw.Error, TypeError, ValueError, OverflowError) as error:
            if not connection.in_transaction:
                raise
            raise SqlFailed(f"tx.sql: {error} (in {_shown(query)})") from error
        finally:
            connection.set_progress_handler(None)
            connection.authorizer = None

    def _authorize(self, operation: int, first: str | None, second: str | None, database: str | None, source: str | None) -> int:  # noqa: ARG002 as SQLite calls it
        refused = why_refused(operation, first, second)
        if refused is None:
            return apsw.SQLITE_OK
        self._refused = refused
        return apsw.SQLITE_DENY

    def _refusal(self) -> str:
        return self._refused or "not allowed"

    def _tell(self, future: asyncio.Future[Any], result: object) -> None:
        with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
            self._loop.call_soon_threadsafe(_settle, future, result)


def _settle(future: asyncio.Future[Any], result: object) -> None:
    if future.done():
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)


def _too_long() -> SqlTimeout:
    return SqlTimeout(
        "the handler kept the store for itself for too long between its first tx.sql and its end, and all that it did is taken back: "
        "do slow awaits before the first tx.sql"
    )


def _shown(query: str) -> str:
    text = " ".join(query.split())
    return repr(text if len(text) <= 120 else text[:119] + "…")
