"""What a URL of a PostgreSQL log or store names: a server, a database, and a schema in it that is Everlog's own."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from everlog.errors import StartRefused

SCHEMES: Final = ("postgresql", "postgres")
_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_.-]{0,62}")
_UNREADABLE: Final = "expected a URL like postgresql://USER@HOST/DATABASE?schema=NAME, found one that cannot be read"
_KEEPALIVE: Final = {
    "connect_timeout": "10",
    # A server whose machine is gone answers nothing: the default notices after two hours.
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
}


class Place(NamedTuple):
    """Where a log or a store is."""

    conninfo: str
    """What the driver connects with. It may hold a password: never shown."""
    schema: str
    shown: str
    """The place as it may be printed."""

    @property
    def channel(self) -> str:
        """The channel that its bell rings on."""
        return f"everlog.{self.schema}"[:63]


def place_of(url: str, *, schema: str) -> Place:
    """Return what `postgresql://[USER[:PASSWORD]@][HOST[:PORT]]/DATABASE[?schema=NAME&…]` names.

    What libpq takes as a parameter may stand behind the question mark too (`sslmode=verify-full`), and its environment variables
    (`PGPASSWORD`, `PGSSLROOTCERT` …) and password file hold as they do for psql.

    Args:
        url: The URL.
        schema: The schema where the URL names none.

    Raises:
        StartRefused: It is no such URL. The message does not hold the password.
    """
    try:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise StartRefused(_UNREADABLE) from None  # its text may hold the password
    if parts.scheme not in SCHEMES or not url.startswith(f"{parts.scheme}://"):
        raise StartRefused(_UNREADABLE)
    query = dict(pairs)
    schema = query.pop("schema", schema)
    if not _NAME.fullmatch(schema):
        raise StartRefused(
            f"expected a schema of letters, digits, `_`, `-` and `.`, at most 63, found {schema!r}: name another one with ?schema=NAME"
        )
    if schema.lower().startswith("pg_") or schema in {"public", "information_schema"}:
        raise StartRefused(f"schema {schema!r} is PostgreSQL's, or everybody's: name one of its own with ?schema=NAME")
    conninfo = urlunsplit(("postgresql", parts.netloc, parts.path, urlencode({**_KEEPALIVE, **query}), ""))
    address = f"{host}:{port}" if port else host
    return Place(conninfo, schema, f"postgresql://{address}{parts.path}?schema={schema}")
