"""What the stored names of an app stand for at one moment."""

from __future__ import annotations

from everlog.drivers.postgres.database import Connection
from everlog.rules.names import Names
from everlog.stores.postgres.rows import rows_of

_NAMES = """
    SELECT s.name, s.generation, o.state FROM subscription AS s LEFT JOIN owned AS o ON o.subscription = s.name
"""


async def names(connection: Connection) -> Names:
    """Return the names as they are in this transaction: another process may register, retire or replay at any time."""
    found = await rows_of(connection, _NAMES)
    return Names(
        {name: generation for name, generation, _ in found},
        {state: (name, generation) for name, generation, state in found if state is not None},
    )
