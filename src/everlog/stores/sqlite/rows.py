"""Rows of state, read on whichever connection shows them as the reader should see them."""

from __future__ import annotations

from collections.abc import Sequence

import apsw
import msgspec

from everlog.drivers.sqlite.rows import rows_of
from everlog.rules.applying import span_of
from everlog.rules.names import Names
from everlog.store import StateKey, Versioned
from everlog.stores.sqlite.commit import SCAN

_ROW = "SELECT value, version FROM state WHERE subscription = ? AND generation = ? AND state = ? AND key = ?"


def read(connection: apsw.Connection, known: Names, keys: Sequence[StateKey]) -> Sequence[Versioned]:
    """Return the rows, in the order of `keys`."""
    found: list[Versioned] = []
    for state, key in keys:
        rows = rows_of(connection, _ROW, (*known.state(state), state, key))
        found.append(_checked(Versioned(*rows[0]), state, key) if rows else Versioned(None, 0))
    return found


def scan(connection: apsw.Connection, known: Names, state: str, prefix: str) -> Sequence[tuple[str, Versioned]]:
    """Return the rows whose key starts with the whole elements of `prefix`, by key text."""
    rows = rows_of(connection, SCAN, (*known.state(state), state, *span_of(prefix)))
    return [(key, _checked(Versioned(value, version), state, key)) for key, value, version in rows]


def _checked(row: Versioned, state: str, key: str) -> Versioned:
    """Refuse a value of which a page came back as zeros: JSON holds none."""
    if row.value is not None and 0 in row.value:
        raise msgspec.DecodeError(f"zeros in {key} of state {state!r}")
    return row
