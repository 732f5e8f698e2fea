"""The log in a schema of a PostgreSQL database: many machines publish to it and read it at once."""

from __future__ import annotations

from collections.abc import Sequence

from everlog.drivers.postgres import schema
from everlog.drivers.postgres.place import place_of
from everlog.logs.postgres.examine import examine_log as examine_log
from everlog.logs.postgres.log import SCHEMA
from everlog.logs.postgres.log import open_log as open_log
from everlog.logs.postgres.tables import LOG


async def is_missing(url: str) -> bool:
    """Tell whether there is no log at a URL: opening it would make one.

    Raises:
        StartRefused: Something else is there.
        LogUnreachable: The server does not answer.
    """
    return await schema.is_missing(place_of(url, schema=SCHEMA), LOG)


async def migrate(url: str) -> Sequence[int]:
    """Bring the tables of a log to the version of this Everlog, or make them; return the versions reached, none where it was up to date.

    Raises:
        StartRefused: They are newer, or of something else, or this role may not change them.
    """
    return await schema.migrate(place_of(url, schema=SCHEMA), LOG)
