"""The store in a schema of a PostgreSQL database: the workers of a service may be on many machines."""

from __future__ import annotations

from collections.abc import Sequence

from everlog.drivers.postgres import schema
from everlog.drivers.postgres.place import place_of
from everlog.stores.postgres.examine import examine_store as examine_store
from everlog.stores.postgres.store import SCHEMA
from everlog.stores.postgres.store import open_store as open_store
from everlog.stores.postgres.tables import STORE


async def is_missing(url: str) -> bool:
    """Tell whether there is no store at a URL: opening it would make one.

    Raises:
        StartRefused: Something else is there.
        StoreUnreachable: The server does not answer.
    """
    return await schema.is_missing(place_of(url, schema=SCHEMA), STORE)


async def migrate(url: str) -> Sequence[int]:
    """Bring the tables of a store to the version of this Everlog, or make them; return the versions reached, none where it was up to date.

    Raises:
        StartRefused: They are newer, or of something else, or this role may not change them.
    """
    return await schema.migrate(place_of(url, schema=SCHEMA), STORE)
