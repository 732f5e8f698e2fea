"""What a store's file holds.

    meta ──── one row: who the store is, whose it is, the next numbers
    subscription ─┬─ owned ──── state        what handlers remember, by generation
                  ├─ progress                 how far each topic partition is handled
                  ├─ muted                    up to where a replay publishes nothing again
                  ├─ held ◄── request         events whose key is blocked or parked; `holding` counts them
                  ├─ timer · attempt · skipped
                  └─ lease ──► member         who works on which slot
    outbox ──── issued · sent_before          events on their way to the log, the numbers given, and what the log has from a former incarnation
    landmark                                  records of the log by which another history of it is known

Generations, timers, `attempt` and `skipped` are here from the start, since a table that is added later needs a new version of every file.
"""

from __future__ import annotations

from typing import Final

from everlog.drivers.sqlite.connection import MARKS, Kind
from everlog.drivers.sqlite.database import HEAD_TABLE

_TABLES: Final = (
    HEAD_TABLE
    + """
CREATE TABLE meta (
    identity BLOB NOT NULL, incarnation INTEGER NOT NULL,
    app TEXT, log BLOB,
    next_member INTEGER NOT NULL,
    epoch INTEGER NOT NULL  -- the last one given, to any slot: an epoch names one acquisition for ever, even of a slot that was retired
) STRICT;
INSERT INTO meta VALUES (randomblob(16), 1, NULL, NULL, 1, 0);

CREATE TABLE subscription (
    name TEXT PRIMARY KEY, generation INTEGER NOT NULL,
    types TEXT NOT NULL,  -- JSON: topic -> wire names
    origin TEXT NOT NULL  -- the name that it was first stored under
) STRICT, WITHOUT ROWID;
CREATE TABLE owned (state TEXT PRIMARY KEY, subscription TEXT NOT NULL) STRICT, WITHOUT ROWID;

CREATE TABLE state (
    subscription TEXT NOT NULL, generation INTEGER NOT NULL, state TEXT NOT NULL,
    key TEXT NOT NULL,  -- canonical JSON array text
    value BLOB NOT NULL, version INTEGER NOT NULL,
    PRIMARY KEY (subscription, generation, state, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE progress (
    subscription TEXT NOT NULL, generation INTEGER NOT NULL, partition INTEGER NOT NULL, topic TEXT NOT NULL,
    through INTEGER NOT NULL,
    unfinished BLOB NOT NULL,  -- MessagePack: offsets, ascending
    dedupe BLOB NOT NULL,
    PRIMARY KEY (subscription, generation, partition, topic)
) STRICT, WITHOUT ROWID;

CREATE TABLE muted (
    subscription TEXT NOT NULL, generation INTEGER NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL,
    through INTEGER NOT NULL,
    but BLOB NOT NULL,  -- MessagePack: offsets, ascending
    fresh BLOB NOT NULL,  -- MessagePack of Fresh, several
    PRIMARY KEY (subscription, topic, partition)
) STRICT, WITHOUT ROWID;

CREATE TABLE held (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    subscription TEXT NOT NULL, generation INTEGER NOT NULL, slot INTEGER NOT NULL, key TEXT NOT NULL,
    type TEXT NOT NULL,  -- its wire name, as in the record
    record BLOB NOT NULL,  -- MessagePack of StoredRecord
    cause TEXT NOT NULL, attempts INTEGER NOT NULL, error TEXT NOT NULL, trace TEXT NOT NULL,
    next_attempt_us INTEGER, held_at_us INTEGER NOT NULL
) STRICT;
CREATE INDEX held_by_key ON held (subscription, slot, key, id);
CREATE TABLE holding (  -- how much that is, kept by the triggers
    subscription TEXT PRIMARY KEY, records INTEGER NOT NULL, bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TRIGGER held_more AFTER INSERT ON held BEGIN
    INSERT INTO holding VALUES (new.subscription, 1, length(new.record))
    ON CONFLICT (subscription) DO UPDATE SET records = records + 1, bytes = bytes + length(new.record);
END;
CREATE TRIGGER held_less AFTER DELETE ON held BEGIN
    UPDATE holding SET records = records - 1, bytes = bytes - length(old.record) WHERE subscription = old.subscription;
END;

CREATE TABLE request (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    subscription TEXT NOT NULL, slot INTEGER NOT NULL, key TEXT NOT NULL, action TEXT NOT NULL,
    held_id INTEGER NOT NULL,  -- the record that was the first when it was asked for
    UNIQUE (subscription, slot, key, action)
) STRICT;

CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    topic TEXT NOT NULL, partition INTEGER NOT NULL, key TEXT,
    record BLOB NOT NULL,  -- MessagePack of NewRecord
    sequence INTEGER, error TEXT
) STRICT;
CREATE INDEX outbox_refused ON outbox (topic, key, id) WHERE error IS NOT NULL;
CREATE TABLE issued (
    topic TEXT NOT NULL, partition INTEGER NOT NULL, highest INTEGER NOT NULL, PRIMARY KEY (topic, partition)
) STRICT, WITHOUT ROWID;

CREATE TABLE sent_before (
    topic TEXT NOT NULL, id TEXT NOT NULL, PRIMARY KEY (topic, id)  -- of events whose rows are not to be sent
) STRICT, WITHOUT ROWID;
CREATE TABLE landmark (
    topic TEXT NOT NULL, partition INTEGER NOT NULL, "offset" INTEGER NOT NULL, logged_at_us INTEGER NOT NULL,
    PRIMARY KEY (topic, partition)
) STRICT, WITHOUT ROWID;

CREATE TABLE timer (
    subscription TEXT NOT NULL, name TEXT NOT NULL, key TEXT NOT NULL, fires_us INTEGER NOT NULL,
    emitted BLOB NOT NULL,  -- MessagePack of Emitted
    PRIMARY KEY (subscription, name, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE member (
    number INTEGER PRIMARY KEY,
    pid INTEGER NOT NULL, pid_start INTEGER NOT NULL, boot_id TEXT NOT NULL, pid_namespace TEXT NOT NULL,
    handles TEXT NOT NULL,  -- JSON: subscription -> types
    seen_s REAL NOT NULL,  -- monotonic time of that boot
    paused TEXT NOT NULL  -- JSON: subscription -> why
) STRICT;
CREATE TABLE lease (
    subscription TEXT NOT NULL, slot INTEGER NOT NULL, epoch INTEGER NOT NULL, member INTEGER, PRIMARY KEY (subscription, slot)
) STRICT, WITHOUT ROWID;

CREATE TABLE attempt (
    subscription TEXT NOT NULL, slot INTEGER NOT NULL,
    attempt BLOB NOT NULL,  -- MessagePack of Attempt
    PRIMARY KEY (subscription, slot)
) STRICT, WITHOUT ROWID;
CREATE TABLE skipped (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    subscription TEXT NOT NULL, key TEXT NOT NULL, record BLOB NOT NULL, error TEXT NOT NULL, skipped_at_us INTEGER NOT NULL
) STRICT;
"""
)

STORE: Final = Kind("store", application_id=MARKS["store"], version=4, tables=_TABLES)
