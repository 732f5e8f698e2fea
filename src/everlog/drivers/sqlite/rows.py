"""Asking a database of ours: what comes back has the types that its STRICT tables declare, which no checker can read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw


def rows_of(connection: apsw.Connection, sql: str, values: Sequence[Any] = ()) -> list[Any]:
    """Return every row of a query, each a tuple of its columns. No cursor stays open."""
    return connection.execute(sql, values).fetchall()


def first_of(connection: apsw.Connection, sql: str, values: Sequence[Any] = ()) -> Any:
    """Return the first column of a query's first row; ``None`` where there is no row."""
    rows = connection.execute(sql, values).fetchall()
    return rows[0][0] if rows else None
