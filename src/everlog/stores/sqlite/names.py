"""What the stored names of an app stand for at one moment."""

from __future__ import annotations

import apsw

from everlog.drivers.sqlite.rows import rows_of
from everlog.rules.names import Names


def names(connection: apsw.Connection) -> Names:
    """Return the names as they are in this transaction: another process may register, retire or replay at any time."""
    generations: dict[str, int] = dict(rows_of(connection, "SELECT name, generation FROM subscription"))
    owned = rows_of(connection, "SELECT state, subscription FROM owned")
    return Names(generations, {state: (owner, generations[owner]) for state, owner in owned})
