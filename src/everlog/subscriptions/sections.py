"""A handler's turn at the store's statements: from its first `tx.sql` to its end, nobody else commits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from everlog.errors import SqlError, SqlTimeout
from everlog.store import Section, StateKey, Versioned

if TYPE_CHECKING:
    import asyncio

    from everlog.subscriptions.committer import Pending

SECTION_S: Final = 0.25
"""For how long a handler may keep the store for itself."""


class Exclusive:
    """One handler call's turn. Asked for by its first `tx.sql`, granted by the committer, ended by whoever ran the handler.

    Args:
        granted: Ends when it is the handler's turn, or the handler has ended without one.
        finished: Ends with the handler's unit, or with ``None`` where it comes to nothing.
    """

    __slots__ = ("_failure", "_finished", "_granted", "_section", "is_expired")

    def __init__(self, granted: asyncio.Future[None], finished: asyncio.Future[Pending | None]) -> None:
        self._granted = granted
        self._finished = finished
        self._section: Section | None = None
        self._failure: SqlError | None = None  # a handler that catches it has failed all the same
        self.is_expired = False
        """It took too long: what it did is taken back."""

    # ---- the handler's side ----

    async def wait(self) -> None:
        """Wait for the turn. Several tasks of a handler may wait, and one may be cancelled."""
        import asyncio  # it costs 40 ms, and whoever only declares an app does not need it

        await asyncio.shield(self._granted)

    async def execute(self, query: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        """Run a statement, after `wait` and `check`. Raises as `Section.execute`."""
        assert self._section is not None
        try:
            return await self._section.execute(query, parameters)
        except SqlError as error:
            if isinstance(error, SqlTimeout) or self._section.has_ended:
                self._failure = error
            raise

    async def read(self, place: StateKey) -> Versioned:
        """Return a row of state as the units before this one leave it. After `wait` and `check`."""
        assert self._section is not None
        return (await self._section.read([place]))[0]

    async def scan(self, state: str, prefix: str) -> Sequence[tuple[str, Versioned]]:
        """Return the rows under a prefix as the units before this one leave them, by key text. After `wait` and `check`."""
        assert self._section is not None
        return await self._section.scan(state, prefix)

    def check(self) -> None:
        """Refuse to go on.

        Raises:
            SqlTimeout: It took too long.
            SqlRefused: One of its statements ended the transaction.
        """
        if self._failure is not None:
            raise self._failure
        if self.is_expired or (self._section is not None and self._section.has_ended):
            raise SqlTimeout(
                f"the handler kept the store for itself for more than {SECTION_S * 1000:g} ms between its first tx.sql and its end, and all "
                f"that it did is taken back: do slow awaits before the first tx.sql"
            )

    def put(self, pending: Pending) -> None:
        """End it with the handler's unit, to be committed with what the statements did. Whether it may, `check` has said."""
        self._end(pending)

    def abandon(self) -> None:
        """End it, unless it has ended: what the statements did is taken back."""
        if not self._finished.done():
            self._end(None)

    def _end(self, pending: Pending | None) -> None:
        self._finished.set_result(pending)
        if not self._granted.done():  # whoever still waits finds the handler ended
            self._granted.set_result(None)

    # ---- the committer's side ----

    @property
    def finished(self) -> asyncio.Future[Pending | None]:
        """Ends with the handler."""
        return self._finished

    @property
    def pending(self) -> Pending | None:
        """The unit that the handler has ended with; ``None`` before, and where it came to nothing."""
        return self._finished.result() if self._finished.done() else None

    def grant(self, section: Section) -> None:
        """Give the turn to the handler."""
        self._section = section
        if not self._granted.done():
            self._granted.set_result(None)

    def expire(self) -> None:
        """Take the turn away."""
        self.is_expired = True
