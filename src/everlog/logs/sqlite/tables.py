"""The tables of a log file.

    topic     id · name · spec                        producer  name · topic · part → numbers seen, hash of its newest batch
    part      topic · part → next, first, gone        chunk     id (commit number << 20 | place) · topic · part · first · last · logged_at ·
    gone      how many records were deleted                     bytes of the partition's bodies up to and with it · body
                                                      newest    topic · part · key → offset, for topics of `keep_newest`
                                                      idempotent  topic · source · idempotency key → hash, offset; for 7 days

Only `chunk` knows a chunk's bounds, so that small ones can be merged later. The next offset of a partition is the one behind its last chunk;
`part.next_offset` stands for it where retention has deleted that chunk, so that it never goes back. An append thus touches as few pages as it can:
each is 4 KiB to be synced. For the same reason a partition's size is the difference of two chunks' `bytes_through`, and no row of its own.
"""

from __future__ import annotations

from typing import Final

from everlog.drivers.sqlite.connection import MARKS, Kind
from everlog.drivers.sqlite.database import HEAD_TABLE

NEXT_OFFSET: Final = (
    "max(part.next_offset, coalesce((SELECT c.last + 1 FROM chunk AS c WHERE c.topic = part.topic AND c.part = part.part "
    "ORDER BY c.last DESC LIMIT 1), 0))"
)
"""The next offset of a row of `part`."""
PLACE_BITS: Final = 20
"""A chunk's id is its commit number, shifted by these, and its place in the commit: ids are in the order of commits."""

LOG: Final = Kind(
    "log",
    application_id=MARKS["log"],
    version=3,
    tables=HEAD_TABLE
    + """;
    CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
    INSERT INTO meta VALUES ('identity', randomblob(16));
    CREATE TABLE topic (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, spec BLOB NOT NULL) STRICT;
    CREATE TABLE part (
        topic INTEGER NOT NULL, part INTEGER NOT NULL,
        next_offset INTEGER NOT NULL, first_offset INTEGER NOT NULL, gone_through_us INTEGER NOT NULL, gone INTEGER NOT NULL,
        PRIMARY KEY (topic, part)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE gone (records INTEGER NOT NULL) STRICT;
    INSERT INTO gone VALUES (0);
    CREATE TABLE chunk (
        id INTEGER PRIMARY KEY, topic INTEGER NOT NULL, part INTEGER NOT NULL,
        first INTEGER NOT NULL, last INTEGER NOT NULL, logged_at_us INTEGER NOT NULL, bytes_through INTEGER NOT NULL, body BLOB NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX chunk_place ON chunk (topic, part, last);
    CREATE TABLE newest (
        topic INTEGER NOT NULL, part INTEGER NOT NULL, key TEXT NOT NULL, "offset" INTEGER NOT NULL,
        PRIMARY KEY (topic, part, key)
    ) STRICT, WITHOUT ROWID;
    CREATE UNIQUE INDEX newest_place ON newest (topic, part, "offset");
    CREATE TABLE producer (
        name TEXT NOT NULL, topic INTEGER NOT NULL, part INTEGER NOT NULL, highest INTEGER NOT NULL, missing BLOB NOT NULL,
        newest_first INTEGER NOT NULL, newest_count INTEGER NOT NULL, newest_content BLOB NOT NULL,
        named INTEGER NOT NULL, seen_us INTEGER NOT NULL,
        PRIMARY KEY (name, topic, part)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE idempotent (
        topic INTEGER NOT NULL, source TEXT NOT NULL, key TEXT NOT NULL,
        hash BLOB NOT NULL, part INTEGER NOT NULL, "offset" INTEGER NOT NULL, at_us INTEGER NOT NULL,
        PRIMARY KEY (topic, source, key)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX idempotent_age ON idempotent (at_us);
    """,
)
