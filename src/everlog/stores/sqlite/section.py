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
from everlog.errors import EverlogError, SqlError, SqlFailed, SqlRefused, SqlTimeout
from everlog.store import Lease, Outcome, Progress, Slot, StateKey, Unit, Versioned
from everlog.stores.sqlite import rows
from everlog.stores.sqlite.commit import commit
from everlog.stores.sqlite.names import names
from everlog.stores.sqlite.tables import STORE

T = TypeVar("T")

_IDLE_S: Final = 0.5
"""How long the section waits between pieces. Its owner's own code needs less, but a handler may block the loop that it runs on."""
_GRACE_S: Final = 0.05
"""So much longer than a piece may take, so that its owner ends it first and can say why."""
_STEPS_PER_LOOK: Final = 1_000
_PREFIX: Final = "everlog_"
"""Names that begin so are kept for tables that the store may get."""
_OURS: Final = frozenset(re.findall(r"CREATE (?:TABLE|INDEX|TRIGGER) (\w+)", STORE.tables))
_SEQUENCES: Final = "sqlite_sequence"
"""SQLite itself writes it where a table is renamed or dropped."""
_ASKED_BY_FTS5: Final = "data_version"
"""The one PRAGMA that a table for full text search cannot do without. It sets nothing."""

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
_NAMES_A_COLUMN: Final = frozenset({apsw.SQLITE_READ, apsw.SQLITE_UPDATE})
"""The second argument is one, and a column may be called what it likes."""
_RENAMES: Final = frozenset({apsw.SQLITE_ALTER_TABLE, apsw.SQLITE_DROP_TABLE})
_HAS_NO_TABLE: Final = frozenset({apsw.SQLITE_SELECT, apsw.SQLITE_FUNCTION, apsw.SQLITE_RECURSIVE})
_PARAMETERS: Final = (type(None), int, float, str, bytes)


class _Step(NamedTuple):
    function: Callable[[apsw.Connection], object]
    done: asyncio.Future[Any] | None
    """Ends with its result; ``None`` where nobody waits: what is wrong shows in the next step."""


class _RolledBack(EverlogError):
    """The owner gave the section up: nothing of it is stored."""


class _Ended(Exception):
    """The transaction is gone, and with it the section. No error of ours, so that the group is not committed."""

    def __init__(self, why: SqlError) -> None:
        super().__init__(str(why))
        self.why = why


def why_refused(
    operation: int, first: str | None, second: str | None, database: str | None, *, is_renaming: bool = False
) -> str | None:
    """Return why a statement may not do this; ``None`` where it may.

    Args:
        operation: The action code of SQLite's authorizer (https://sqlite.org/c3ref/c_alter_table.html).
        first, second: Its arguments: names of what is touched.
        database: Where that is: `main` or `temp`.
        is_renaming: The statement renames or drops a table.
    """
    if operation == apsw.SQLITE_PRAGMA and first == _ASKED_BY_FTS5 and second is None:
        return None
    if operation in _CONTROLS:
        return _CONTROLS[operation]
    if operation in _MAKES_TEMPORARY or (operation in _MAKES and database == "temp"):
        return "temporary tables would stay behind for other handlers"
    if operation in _HAS_NO_TABLE:
        return None
    if first == _SEQUENCES:
        return None if is_renaming else f"{_SEQUENCES} numbers the store's rows too"
    for name in (first,) if operation in _NAMES_A_COLUMN else (first, second):
        if name is not None and name.lower() in _OURS:
            return f"{name} is the store's own: use tx.get, tx.put and the like, and other names for tables of yours"
    if operation in _MAKES and first is not None and first.lower().startswith(_PREFIX):
        return _kept(first)
    return None


def _kept(name: str) -> str:
    return f"{name}: names that begin with {_PREFIX} are kept for the store"


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
        self._has_renamed = False  # in this call
        self._is_renaming = False  # in this statement of it

    # ---- event loop ----

    def begin(self, job: Coroutine[Any, Any, None]) -> None:
        """Queue the job that runs `serve`."""

        async def committed() -> None:
            try:
                await job
            except _Ended as error:
                raise error.why from error

        self._committed = asyncio.ensure_future(committed())
        self._committed.add_done_callback(self._job_ended)

    def _job_ended(self, job: asyncio.Task[None]) -> None:
        error = None if job.cancelled() else job.exception()  # looked at, so that nobody is warned of it
        if not self._opened.done():
            self._opened.set_exception(error or SqlTimeout("the store was closed"))

    async def opened(self) -> None:
        """Wait until the transaction has begun."""
        try:
            await self._opened
        except BaseException:  # cancelled: nobody will end it
            self._steps.put(None)
            raise

    @property
    def has_ended(self) -> bool:
        return self._is_over and not self._keeps

    async def mark(self, *, within_s: float) -> None:
        def marked(connection: apsw.Connection) -> None:
            connection.execute("SAVEPOINT piece")
            self._until_s = time.monotonic() + within_s

        self._post(marked, None)

    async def execute(self, query: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        for number, parameter in enumerate(parameters, start=1):
            if not isinstance(parameter, _PARAMETERS):
                raise SqlRefused(
                    f"parameter {number} of tx.sql is a {type(parameter).__name__}: expected None, int, float, str or bytes"
                )
        return await self.do(lambda connection: self._executed(connection, query, parameters))

    async def read(self, keys: Sequence[StateKey]) -> Sequence[Versioned]:
        return await self.do(lambda connection: rows.read(connection, names(connection), keys))

    async def scan(self, state: str, prefix: str) -> Sequence[tuple[str, Versioned]]:
        return await self.do(lambda connection: rows.scan(connection, names(connection), state, prefix))

    async def undo(self) -> None:
        def undone(connection: apsw.Connection) -> None:
            connection.execute("ROLLBACK TO piece")
            connection.execute("RELEASE piece")
            self._until_s = None

        self._post(undone, None)

    async def keep(self) -> None:
        def kept(connection: apsw.Connection) -> None:
            connection.execute("RELEASE piece")
            self._until_s = None

        self._post(kept, None)

    async def apply(
        self, units: Sequence[Unit], leases: Sequence[Lease], progress: Sequence[tuple[Slot, Progress]] = ()
    ) -> Sequence[Outcome]:
        def applied(connection: apsw.Connection) -> Sequence[Outcome]:
            return commit(connection, units, leases, progress, now_us=self._wall_us())

        return await self.do(applied)

    async def commit(self) -> None:
        self._keeps = True
        self._steps.put(None)
        await asyncio.shield(self._committed)

    async def roll_back(self) -> None:
        self._steps.put(None)
        with suppress(EverlogError):
            await asyncio.shield(self._committed)

    async def do(self, function: Callable[[apsw.Connection], T]) -> T:
        """Run a function of ours inside the transaction, and return what it returned."""
        done: asyncio.Future[T] = self._loop.create_future()
        self._post(function, done)
        try:
            return await done
        except apsw.Error:  # the section ends with it, and its end says what that means: no room, damage
            await asyncio.shield(self._committed)
            raise

    def _post(self, function: Callable[[apsw.Connection], object], done: asyncio.Future[Any] | None) -> None:
        with self._lock:
            if self._is_over:
                raise _too_long()
            self._steps.put(_Step(function, done))

    # ---- writer thread ----

    def serve(self, connection: apsw.Connection) -> None:
        """Carry out the steps inside the transaction of a group, until the end is asked for.

        Raises:
            SqlTimeout: The owner kept the thread waiting. Nothing was changed.
            _Ended, apsw.Error: The transaction is gone, or the file cannot be written: nothing of the group is stored.
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
            self._end()
            while not self._steps.empty():
                step = self._steps.get()
                if step is not None:
                    self._tell(step.done, _too_long())

    def _end(self) -> None:
        with self._lock:
            self._is_over = True

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
                self._end()  # before anybody is told, who may ask
                self._tell(step.done, error.why if isinstance(error, _Ended) else error)
                raise
            else:
                self._tell(step.done, result)

    def _executed(self, connection: apsw.Connection, query: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        """Run a call's statements, all of them or none."""
        connection.execute("SAVEPOINT call")
        try:
            rows = self._guarded(connection, query, parameters)
        except SqlError as error:
            if not connection.in_transaction:
                raise _Ended(error if isinstance(error, SqlTimeout) else _ends(error)) from error
            connection.execute("ROLLBACK TO call")
            connection.execute("RELEASE call")
            raise
        connection.execute("RELEASE call")
        return rows

    def _guarded(self, connection: apsw.Connection, query: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        until_s = self._until_s
        self._refused, self._has_renamed, self._is_renaming = None, False, False
        connection.authorizer = self._authorize  # which has SQLite compile anew what was compiled without it
        connection.exec_trace = self._compiled
        if until_s is not None:
            connection.set_progress_handler(lambda: time.monotonic() > until_s, _STEPS_PER_LOOK)
        try:
            rows = rows_of(connection, query, tuple(parameters))
        except apsw.InterruptError as error:
            # A write that is broken off ends the transaction (https://sqlite.org/c3ref/interrupt.html), a read does not.
            raise SqlTimeout(
                f"tx.sql: a statement was broken off, since the handler has had the store for itself for too long, and all that it did is taken "
                f"back: make it cheaper (in {_shown(query)})"
            ) from error
        except (apsw.FullError, apsw.IOError):  # not the statement's fault: no room, or damage
            raise
        except (apsw.Error, TypeError, ValueError, OverflowError) as error:
            if self._refused is not None:
                raise SqlRefused(f"tx.sql: {self._refused} (in {_shown(query)})") from error
            raise SqlFailed(f"tx.sql: {error} (in {_shown(query)})") from error
        finally:
            connection.set_progress_handler(None)
            connection.exec_trace = None
            connection.authorizer = None
        if self._has_renamed:  # the authorizer is not told the new name
            for (name,) in rows_of(
                connection, "SELECT name FROM sqlite_schema WHERE substr(lower(name), 1, ?) = ?", (len(_PREFIX), _PREFIX)
            ):
                raise SqlRefused(f"tx.sql: {_kept(name)} (in {_shown(query)})")
        return rows

    def _authorize(self, operation: int, first: str | None, second: str | None, database: str | None, source: str | None) -> int:  # noqa: ARG002 as SQLite calls it
        if operation in _RENAMES:
            self._has_renamed = self._is_renaming = True
        refused = why_refused(operation, first, second, database, is_renaming=self._is_renaming)
        if refused is None:
            return apsw.SQLITE_OK
        self._refused = refused
        return apsw.SQLITE_DENY

    def _compiled(self, cursor: object, query: str, parameters: object) -> bool:  # noqa: ARG002 as SQLite calls it
        """A statement was compiled, and its authorizer has been asked for the last time."""
        self._is_renaming = False
        return True

    def _tell(self, future: asyncio.Future[Any] | None, result: object) -> None:
        if future is None:
            return
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


def _ends(error: SqlError) -> SqlRefused:
    return SqlRefused(
        f"the statement ended the transaction, which is Everlog's to end, and all that the handler did is taken back: write ABORT where it "
        f"says ROLLBACK, in INSERT OR …, ON CONFLICT … or RAISE(…): {error}"
    )


def _shown(query: str) -> str:
    text = " ".join(query.split())
    return repr(text if len(text) <= 120 else text[:119] + "…")
