"""The tables of a log's schema.

    topic      id · name · spec · the segment that its chunks go into        producer    name · topic · part → numbers seen
    part       topic · part → next and first offset, bytes, what is gone     newest      topic · part · key → offset, for `keep_newest`
    chunk      topic · segment · part · first · last · time · body           idempotent  topic · source · key → hash, offset; for 7 days
      └ chunk_T  one per topic, parted by segment ─ chunk_T_N

Appends to one partition come one after another: each holds the partition's row of `part` from before it asks for the next offset until it
has committed. So an offset is visible only when all before it are, and a reader that goes by offsets never passes over one that commits late.

What retention takes is taken by raising `part.first_offset`; the chunks behind it go when all of their segment may, by dropping its table,
which leaves nothing for VACUUM to clear.
"""

from __future__ import annotations

from typing import Final

from everlog.drivers.postgres.schema import Kind

LOG: Final = Kind(
    "log",
    version=1,
    tables="""
    CREATE TABLE identity (identity uuid NOT NULL);
    INSERT INTO identity VALUES (gen_random_uuid());
    CREATE TABLE topic (
        id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE, spec bytea NOT NULL,
        keeps_newest boolean NOT NULL, segment integer NOT NULL, segment_since_us bigint NOT NULL
    );
    -- Rows that are changed with each append: room in the page, so that a change stays in it and needs no VACUUM.
    CREATE TABLE part (
        topic integer NOT NULL, part integer NOT NULL,
        next_offset bigint NOT NULL, first_offset bigint NOT NULL, bytes_through bigint NOT NULL, logged_at_us bigint NOT NULL,
        gone_through_us bigint NOT NULL, gone bigint NOT NULL,
        PRIMARY KEY (topic, part)
    ) WITH (fillfactor = 20);
    CREATE TABLE chunk (
        topic integer NOT NULL, segment integer NOT NULL, part integer NOT NULL,
        first bigint NOT NULL, last bigint NOT NULL, logged_at_us bigint NOT NULL, bytes_through bigint NOT NULL, size integer NOT NULL,
        body bytea NOT NULL,
        PRIMARY KEY (topic, part, last, segment)
    ) PARTITION BY LIST (topic);
    ALTER TABLE chunk ALTER COLUMN body SET STORAGE EXTERNAL;  -- never compressed by the server: its parts are read by place
    CREATE TABLE newest (
        topic integer NOT NULL, part integer NOT NULL, key text NOT NULL, "offset" bigint NOT NULL,
        PRIMARY KEY (topic, part, key)
    );
    CREATE INDEX newest_place ON newest (topic, part, "offset");
    CREATE TABLE producer (
        name text NOT NULL, topic integer NOT NULL, part integer NOT NULL, highest bigint NOT NULL, missing bytea NOT NULL,
        newest_first bigint NOT NULL, newest_count integer NOT NULL, newest_content bytea NOT NULL,
        named boolean NOT NULL, seen_us bigint NOT NULL,
        PRIMARY KEY (name, topic, part)
    ) WITH (fillfactor = 50);
    CREATE TABLE idempotent (
        topic integer NOT NULL, source text NOT NULL, key text NOT NULL,
        hash bytea NOT NULL, part integer NOT NULL, "offset" bigint NOT NULL, at_us bigint NOT NULL,
        PRIMARY KEY (topic, source, key)
    );
    CREATE INDEX idempotent_age ON idempotent (at_us);
    """,
)
