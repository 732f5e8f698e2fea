"""Writing many rows with few statements.

SQLite's driver lends the interpreter to the event loop before each step of a statement and waits to have it back, which costs more than a
row does where the loop is busy. A statement of many rows is one step.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, Final

import apsw

_ROWS: Final = 16
"""Of one statement. 64 are no faster: SQLite's own work for a row grows."""


class Insert:
    """An INSERT of rows of `width` values: `head` up to VALUES, and what follows the values."""

    def __init__(self, head: str, width: int, tail: str = "") -> None:
        row = f"({', '.join('?' * width)})"
        self._one = f"{head} VALUES {row} {tail}"
        self._many = f"{head} VALUES {', '.join([row] * _ROWS)} {tail}"

    def write(self, connection: apsw.Connection, rows: Sequence[Sequence[Any]]) -> None:
        """Insert the rows, in their order."""
        whole = len(rows) // _ROWS * _ROWS
        connection.executemany(
            self._many, [tuple(chain.from_iterable(rows[start : start + _ROWS])) for start in range(0, whole, _ROWS)]
        )
        connection.executemany(self._one, rows[whole:])
