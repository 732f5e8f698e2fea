"""What a `reset` hook is given: statements on the app's own tables, in the transaction in which a replay begins."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeAlias

from everlog.errors import TxRefused
from everlog.store import Section
from everlog.subscriptions.tx import Tx

Reset: TypeAlias = Callable[[Tx[Any]], Coroutine[Any, Any, None]]
"""Empties the tables that handlers fill with `tx.sql`."""


class ResetTx(Tx[Any]):
    """A `Tx` whose `sql` alone works: there is no event, and state begins empty by itself."""

    __slots__ = ("_section",)

    def __init__(self, section: Section) -> None:  # nothing of a handler's call is there
        self._section = section

    async def sql(self, query: str, *params: object) -> list[tuple[Any, ...]]:
        """Run a statement on the app's own tables; return its rows. Raises as `Tx.sql`."""
        return await self._section.execute(query, params)

    @property
    def replaying(self) -> bool:
        """Always: a replay begins."""
        return True

    @property
    def record(self) -> NoReturn:
        """Refuse. Raises `TxRefused`."""
        raise _only_sql()

    @property
    def records(self) -> NoReturn:
        """Refuse. Raises `TxRefused`."""
        raise _only_sql()

    @property
    def resources(self) -> NoReturn:
        """Refuse. Raises `TxRefused`."""
        raise _only_sql()

    @property
    def idempotency_key(self) -> NoReturn:
        """Refuse. Raises `TxRefused`."""
        raise _only_sql()

    def _check(self) -> NoReturn:
        raise _only_sql()


def _only_sql() -> TxRefused:
    return TxRefused(
        "a reset hook has tx.sql alone: no event is handled, and state begins empty by itself; await tx.sql(…) for each table"
    )
