"""What a store's schema holds: the tables of the store in a file, with the same names and meanings, and two more.

    service ── one row: who the store is, whose it is, the next numbers
    subscription ─┬─ owned ──── state        what handlers remember, by generation
                  ├─ progress · muted         how far each topic partition is handled, and what a replay publishes no more
                  ├─ held ◄── request         events whose key is blocked or parked; `holding` counts them
                  ├─ timer · attempt · skipped
                  └─ lease ──► member         who works on which slot
    outbox ──── issued · sent_before          events on their way to the log
    staged                                    events of transactions of the user's own, on their way into the outbox
    landmark                                  records of the log by which another history of it is known
    turn                                      holds nothing: who changes the store locks it until the transaction ends

Keys of events are bytes, since a text of PostgreSQL cannot hold every character that a key may. Texts that are compared are so by their bytes.
"""

from __future__ import annotations

from typing import Final

from everlog.drivers.postgres.schema import Kind

STORE: Final = Kind(
    "store",
    version=1,
    tables="""
    CREATE TABLE turn ();
    CREATE TABLE service (
        identity uuid NOT NULL, incarnation integer NOT NULL,
        app text, log uuid,
        next_member bigint NOT NULL,
        epoch bigint NOT NULL  -- the last one given, to any slot
    );
    INSERT INTO service VALUES (gen_random_uuid(), 1, NULL, NULL, 1, 0);
    CREATE TABLE subscription (
        name text COLLATE "C" PRIMARY KEY, generation integer NOT NULL,
        types text NOT NULL,  -- JSON: topic -> wire names
        origin text NOT NULL
    );
    CREATE TABLE owned (state text PRIMARY KEY, subscription text NOT NULL);
    -- Rows that are changed again and again: with room in the page a change stays in it, and leaves nothing for VACUUM.
    CREATE TABLE state (
        subscription text NOT NULL, generation integer NOT NULL, state text NOT NULL,
        key text COLLATE "C" NOT NULL,  -- canonical JSON array text
        value bytea NOT NULL, version bigint NOT NULL,
        PRIMARY KEY (subscription, generation, state, key)
    ) WITH (fillfactor = 70);
    CREATE TABLE progress (
        subscription text NOT NULL, generation integer NOT NULL, partition integer NOT NULL, topic text COLLATE "C" NOT NULL,
        through bigint NOT NULL, unfinished bytea NOT NULL, dedupe bytea NOT NULL,
        PRIMARY KEY (subscription, generation, partition, topic)
    ) WITH (fillfactor = 20);
    CREATE TABLE muted (
        subscription text NOT NULL, generation integer NOT NULL, topic text COLLATE "C" NOT NULL, partition integer NOT NULL,
        through bigint NOT NULL, but bytea NOT NULL, fresh bytea NOT NULL,
        PRIMARY KEY (subscription, topic, partition)
    );
    CREATE TABLE held (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        subscription text NOT NULL, generation integer NOT NULL, slot integer NOT NULL, key bytea NOT NULL,
        type text NOT NULL, record bytea NOT NULL,
        cause text NOT NULL, attempts integer NOT NULL, error text NOT NULL, trace text NOT NULL,
        next_attempt_us bigint, held_at_us bigint NOT NULL
    );
    CREATE INDEX held_by_key ON held (subscription, slot, key, id);
    CREATE TABLE holding (subscription text PRIMARY KEY, records bigint NOT NULL, bytes bigint NOT NULL);
    CREATE FUNCTION count_held() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF TG_OP = 'INSERT' THEN
            INSERT INTO holding SELECT subscription, count(*), sum(octet_length(record)) FROM changed GROUP BY subscription
            ON CONFLICT (subscription)
            DO UPDATE SET records = holding.records + excluded.records, bytes = holding.bytes + excluded.bytes;
        ELSE
            UPDATE holding SET records = holding.records - gone.records, bytes = holding.bytes - gone.bytes FROM (
                SELECT subscription, count(*) AS records, sum(octet_length(record)) AS bytes FROM changed GROUP BY subscription
            ) AS gone WHERE holding.subscription = gone.subscription;
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER held_more AFTER INSERT ON held REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION count_held();
    CREATE TRIGGER held_less AFTER DELETE ON held REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION count_held();
    CREATE TABLE request (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        subscription text NOT NULL, slot integer NOT NULL, key bytea NOT NULL, action text NOT NULL,
        held_id bigint NOT NULL,  -- the record that was the first when it was asked for
        UNIQUE (subscription, slot, key, action)
    );
    CREATE TABLE outbox (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        topic text COLLATE "C" NOT NULL, partition integer NOT NULL, key bytea, record bytea NOT NULL,
        sequence bigint, error text
    ) WITH (fillfactor = 50);
    CREATE INDEX outbox_refused ON outbox (topic, key, id) WHERE error IS NOT NULL;
    CREATE TABLE staged (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        topic text NOT NULL, partition integer NOT NULL, key bytea, record bytea NOT NULL
    );
    CREATE TABLE issued (
        topic text NOT NULL, partition integer NOT NULL, highest bigint NOT NULL, PRIMARY KEY (topic, partition)
    ) WITH (fillfactor = 20);
    CREATE TABLE sent_before (topic text NOT NULL, id text NOT NULL, PRIMARY KEY (topic, id));
    CREATE TABLE landmark (
        topic text COLLATE "C" NOT NULL, partition integer NOT NULL, "offset" bigint NOT NULL, logged_at_us bigint NOT NULL,
        PRIMARY KEY (topic, partition)
    );
    CREATE TABLE timer (
        subscription text NOT NULL, name text NOT NULL, key bytea NOT NULL, fires_us bigint NOT NULL, emitted bytea NOT NULL,
        PRIMARY KEY (subscription, name, key)
    );
    CREATE TABLE member (
        number bigint PRIMARY KEY,
        pid integer NOT NULL, pid_start bigint NOT NULL, boot_id text NOT NULL, pid_namespace text NOT NULL,
        handles text NOT NULL,  -- JSON: subscription -> types
        seen_us bigint NOT NULL,
        paused text NOT NULL  -- JSON: subscription -> why
    ) WITH (fillfactor = 20);
    CREATE TABLE lease (
        subscription text NOT NULL, slot integer NOT NULL, epoch bigint NOT NULL, member bigint, PRIMARY KEY (subscription, slot)
    );
    CREATE TABLE attempt (
        subscription text NOT NULL, slot integer NOT NULL, attempt bytea NOT NULL, PRIMARY KEY (subscription, slot)
    );
    CREATE TABLE skipped (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        subscription text NOT NULL, key bytea NOT NULL, record bytea NOT NULL, error text NOT NULL, skipped_at_us bigint NOT NULL
    );
    """,
)

TURN: Final = "BEGIN; LOCK TABLE turn IN EXCLUSIVE MODE"
"""How a transaction that changes the store begins: one at a time, whichever process it is of, and reading goes on."""
