"""A schema of PostgreSQL: where a URL says it is, its tables and their versions, and who may make them."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from tests.postgres import PostgresSchema
from tests.servers import postgres_url

from everlog.clock import SystemClock
from everlog.drivers.postgres import schema as schemas
from everlog.drivers.postgres.place import place_of
from everlog.errors import LogUnreachable, StartRefused
from everlog.log import TopicSpec
from everlog.logs import postgres
from everlog.logs.postgres.tables import LOG
from everlog.position import BEGINNING, TopicPartition
from everlog.record import NewRecord
from everlog.stores import postgres as stores

RECORD = NewRecord("driver.happened/1", b"{}", "k", 0, "test", 1)


@pytest.fixture
def schema() -> Generator[PostgresSchema]:
    made = PostgresSchema(postgres_url())
    yield made
    made.drop()


# ---- where ----


def test_a_url_names_server_database_and_schema() -> None:
    place = place_of("postgresql://ada:pass%20word@db.example:5433/shop?schema=log&sslmode=require", schema="everlog")
    assert place.schema == "log"
    assert place.shown == "postgresql://db.example:5433/shop?schema=log"
    assert "pass%20word@db.example:5433/shop" in place.conninfo
    assert "sslmode=require" in place.conninfo
    assert "schema" not in place.conninfo
    assert place_of("postgres://localhost/shop", schema="everlog").schema == "everlog"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:shop",
        "postgresql://h:port/shop",
        "mysql://h/shop",
        "postgresql://h/shop?schema",
        "postgresql://h/shop?schema=",
        "postgresql://h/shop?schema=public",
        "postgresql://h/shop?schema=pg_mine",
        "postgresql://h/shop?schema=a%22b",
        "postgresql://h/shop?schema=" + "x" * 64,
    ],
)
def test_a_url_that_names_no_schema_of_ours_is_refused(url: str) -> None:
    with pytest.raises(StartRefused):
        place_of(url, schema="everlog")


async def test_a_password_is_in_no_error(schema: PostgresSchema) -> None:
    parts = urlsplit(schema.server)
    for url in (
        f"postgresql://app:wr0ng-secret@127.0.0.1:{parts.port}/app",
        "postgresql://app:wr0ng-secret@127.0.0.1:1/app",
        "postgresql://app:wr0ng-secret@127.0.0.1:port/app",
    ):
        with pytest.raises((StartRefused, LogUnreachable)) as refused:
            await postgres.open_log(url, clock=SystemClock())
        shown = [str(refused.value), str(refused.value.__cause__), repr(refused.value.__context__)]
        assert not any("wr0ng-secret" in text for text in shown)


# ---- tables ----


async def test_a_schema_of_another_kind_or_of_somebody_else_is_refused(schema: PostgresSchema) -> None:
    log = await postgres.open_log(schema.url, clock=SystemClock())
    await log.aclose()
    with pytest.raises(StartRefused, match="holds a log"):
        await stores.open_store(schema.url, clock=SystemClock())
    theirs = schema.url.replace(f"schema={schema.name}", f"schema={schema.app_schema}")
    schema.run(f"CREATE TABLE {schema.app_schema}.topic (name text)")
    with pytest.raises(StartRefused, match="somebody else"):
        await postgres.open_log(theirs, clock=SystemClock())
    schema.run(f"CREATE TABLE {schema.app_schema}.meta (name text)")
    with pytest.raises(StartRefused, match="somebody else"):
        await postgres.open_log(theirs, clock=SystemClock())


async def test_older_tables_are_upgraded_by_migrate_and_by_nobody_else(schema: PostgresSchema) -> None:
    log = await postgres.open_log(schema.url, clock=SystemClock())
    await log.ensure_topic(TopicSpec("t", key="id"))
    await log.append("t", [RECORD])
    await log.aclose()
    newer = replace(LOG, version=3, steps={1: "ALTER TABLE topic ADD COLUMN note text", 2: "UPDATE topic SET note = 'new'"})
    place = place_of(schema.url, schema="everlog")
    async with schemas.connected(place, newer) as connection:
        with pytest.raises(StartRefused, match="everlog migrate"):
            await schemas.check(connection, place, newer)
    assert list(await schemas.migrate(place, newer)) == [2, 3]
    assert list(await schemas.migrate(place, newer)) == []
    assert schema.run("SELECT note FROM topic") == [("new",)]
    with pytest.raises(StartRefused, match="upgrade Everlog"):
        await postgres.open_log(schema.url, clock=SystemClock())


async def test_a_step_that_fails_leaves_the_version_before(schema: PostgresSchema) -> None:
    await postgres.migrate(schema.url)
    broken = replace(LOG, version=2, steps={1: "ALTER TABLE topic ADD COLUMN note text; SELECT 1 / 0"})
    with pytest.raises(psycopg.errors.DivisionByZero):
        await schemas.migrate(place_of(schema.url, schema="everlog"), broken)
    log = await postgres.open_log(schema.url, clock=SystemClock())
    await log.aclose()


async def test_looking_makes_nothing(schema: PostgresSchema) -> None:
    assert await postgres.is_missing(schema.url)
    assert await postgres.is_missing(schema.url)
    assert list(await postgres.migrate(schema.url)) == [1]
    assert not await postgres.is_missing(schema.url)
    assert list(await postgres.migrate(schema.url)) == []


# ---- who may ----


async def test_a_role_that_may_make_nothing_runs_once_somebody_has(schema: PostgresSchema) -> None:
    role, word = f"clerk_{uuid4().hex[:8]}", uuid4().hex
    create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), sql.Literal(word))
    with psycopg.connect(schema.server, autocommit=True) as connection:
        connection.execute(create)
    parts = urlsplit(schema.url)
    theirs = parts._replace(netloc=f"{role}:{word}@{parts.hostname}:{parts.port}").geturl()
    try:
        with pytest.raises(StartRefused, match="everlog migrate"):
            await postgres.open_log(theirs, clock=SystemClock())
        log = await postgres.open_log(schema.url, clock=SystemClock())
        await log.ensure_topic(TopicSpec("t", key="id", partitions=1, keep_s=1.0))
        await log.aclose()
        with pytest.raises(StartRefused, match="may not read"):
            await postgres.open_log(theirs, clock=SystemClock())
        for grant in (
            f"GRANT USAGE ON SCHEMA {schema.name} TO {role}",
            f"GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA {schema.name} TO {role}",
        ):
            schema.run(grant)
        log = await postgres.open_log(theirs, clock=SystemClock())
        await log.ensure_topic(TopicSpec("t", key="id", partitions=1, keep_s=1.0))
        await log.append("t", [RECORD])
        reader = log.reader({TopicPartition("t", 0): BEGINNING})
        assert [record.data for record in (await reader.next()).records()] == [b"{}"]
        reader.close()
        await log.retain()
        await log.aclose()
    finally:
        schema.run(f"DROP OWNED BY {role}; DROP ROLE {role}")
