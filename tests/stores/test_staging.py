"""Events in transactions of the app's own: committed together with its rows or not at all, by whatever library."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from tests.postgres import PostgresSchema
from tests.servers import postgres_url

from everlog import App, Client, Event, Settings, Topic
from everlog.errors import EventRefused, FeatureMissing, StartRefused, StoreError

orders = Topic("staging.orders", key="customer", partitions=4)


@orders.event("staging.placed/1")
class Placed(Event):
    number: int
    customer: str = "c"


@pytest.fixture
def schema() -> Generator[PostgresSchema]:
    made = PostgresSchema(postgres_url())
    made.run(f"CREATE TABLE {made.app_schema}.bought (number INTEGER PRIMARY KEY)")
    yield made
    made.drop()


@pytest.fixture
def other() -> Generator[PostgresSchema]:
    made = PostgresSchema(postgres_url())
    yield made
    made.drop()


@pytest.fixture
def settings(schema: PostgresSchema, tmp_path: Path) -> Settings:
    return Settings(log_url=f"sqlite:{tmp_path / 'log.db'}", store_url=schema.url)


@asynccontextmanager
async def shop(settings: Settings) -> AsyncGenerator[Client]:
    async with App("shop").connect(settings) as client:
        yield client


async def arrived(client: Client, count: int) -> list[int]:
    """Return the numbers of the first events that are in the log."""
    found: list[int] = []
    async with asyncio.timeout(10):
        async for record in client.follow(Placed, start="beginning"):
            found.append(record.event.number)
            if len(found) == count:
                break
    return found


def bought(schema: PostgresSchema) -> list[int]:
    return [number for (number,) in schema.run(f"SELECT number FROM {schema.app_schema}.bought ORDER BY number")]


def engine_url(schema: PostgresSchema) -> str:
    return schema.server.replace("postgresql:", "postgresql+psycopg:", 1)


async def test_rows_and_events_of_a_psycopg_transaction_are_committed_together(
    schema: PostgresSchema, settings: Settings
) -> None:
    async with shop(settings) as client, await psycopg.AsyncConnection.connect(schema.server) as connection:
        insert = (
            f"INSERT INTO {schema.app_schema}.bought VALUES (%s)".encode()
        )  # a string that was put together is none to a type checker
        async with connection.transaction():
            await connection.execute(insert, (1,))
            published = await client.publish(Placed(1), Placed(2), within=connection)
        async with connection.transaction(force_rollback=True):
            await connection.execute(insert, (3,))
            await client.publish(Placed(3), within=connection)
        async with connection.transaction():
            await client.publish(Placed(4), within=connection)
        assert await arrived(client, 3) == [1, 2, 4]
        assert bought(schema) == [1]
        assert len(set(published.ids)) == 2
        assert schema.run("SELECT count(*) FROM staged") == [(0,)]


async def test_rows_and_events_of_an_sqlalchemy_session_are_committed_together(
    schema: PostgresSchema, settings: Settings
) -> None:
    engine = create_async_engine(engine_url(schema))
    insert = sqlalchemy.text(f"INSERT INTO {schema.app_schema}.bought VALUES (:number)")
    try:
        async with shop(settings) as client:
            async with AsyncSession(engine) as session, session.begin():
                await session.execute(insert, {"number": 1})
                await client.publish(Placed(1), within=session)
            async with AsyncSession(engine) as session:
                await session.execute(insert, {"number": 2})
                await client.publish(Placed(2), within=session)
                await session.rollback()
            async with engine.begin() as connection:
                await client.publish(Placed(3), within=connection)
            assert await arrived(client, 2) == [1, 3]
            assert bought(schema) == [1]
    finally:
        await engine.dispose()


async def test_an_event_that_breaks_its_contract_leaves_the_transaction_as_it_was(
    schema: PostgresSchema, settings: Settings
) -> None:
    async with shop(settings) as client, await psycopg.AsyncConnection.connect(schema.server) as connection:
        async with connection.transaction():
            with pytest.raises(EventRefused, match="number"):
                await client.publish(Placed("many"), within=connection)  # type: ignore[arg-type]
            await client.publish(Placed(1), within=connection)
        assert await arrived(client, 1) == [1]


async def test_events_of_one_key_are_sent_in_the_order_of_the_transactions(schema: PostgresSchema, settings: Settings) -> None:
    async with shop(settings) as client, await psycopg.AsyncConnection.connect(schema.server) as connection:
        for number in range(50):
            async with connection.transaction():
                await client.publish(Placed(number), within=connection)
        assert await arrived(client, 50) == list(range(50))


async def test_what_is_committed_without_a_client_is_sent_by_the_next_one(schema: PostgresSchema, settings: Settings) -> None:
    async with await psycopg.AsyncConnection.connect(schema.server) as connection:
        async with shop(settings) as client:
            await client.publish(Placed(1), within=connection)
        await connection.commit()
        async with shop(settings) as client:
            await client.publish(Placed(2), within=connection)
            await connection.commit()
            assert await arrived(client, 2) == [1, 2]


async def test_a_connection_to_another_database_is_refused(
    schema: PostgresSchema, other: PostgresSchema, settings: Settings
) -> None:
    name = f"{other.name}_db"
    other.run(f'CREATE DATABASE "{name}"')
    elsewhere = schema.server.rpartition("/")[0] + "/" + name
    try:
        async with shop(settings) as client, await psycopg.AsyncConnection.connect(elsewhere) as connection:
            with pytest.raises(StoreError, match="database of the store"):
                await client.publish(Placed(1), within=connection)
            await connection.rollback()
            # The same names in it, and another store.
            await connection.execute(f'CREATE SCHEMA "{schema.name}"'.encode())
            await connection.execute(f'CREATE TABLE "{schema.name}".service AS SELECT gen_random_uuid() AS identity'.encode())
            await connection.execute(
                f'CREATE TABLE "{schema.name}".staged (topic text, partition integer, key bytea, record bytea)'.encode()
            )
            with pytest.raises(StoreError, match="another store"):
                await client.publish(Placed(1), within=connection)
            await connection.rollback()
    finally:
        other.run(f'DROP DATABASE "{name}"')


async def test_what_is_no_transaction_is_refused(schema: PostgresSchema, settings: Settings) -> None:
    async with (
        shop(settings) as client,
        await psycopg.AsyncConnection.connect(schema.server, autocommit=True) as connection,
    ):
        with pytest.raises(StoreError, match="transaction"):
            await client.publish(Placed(1), within=connection)
        with psycopg.connect(schema.server) as blocking, pytest.raises(StoreError, match=r"app\.stage"):
            await client.publish(Placed(1), within=blocking)
        with pytest.raises(StoreError, match="str"):
            await client.publish(Placed(1), within="connection")
        lite = sqlalchemy.create_engine("sqlite://")
        with lite.connect() as elsewhere:
            store, emits = await client.staged([Placed(1)])
            with pytest.raises(StoreError, match="sqlite"):
                store.stage_blocking(elsewhere, emits)
        lite.dispose()


async def test_a_store_in_a_file_refuses_and_says_what_to_use(tmp_path: Path) -> None:
    settings = Settings(log_url=f"sqlite:{tmp_path / 'log.db'}", store_url=f"sqlite:{tmp_path / 'shop.db'}")
    async with shop(settings) as client:
        with pytest.raises(FeatureMissing, match="PostgreSQL"):
            await client.publish(Placed(1), within=object())


async def test_the_store_of_another_app_is_refused(schema: PostgresSchema, settings: Settings) -> None:
    async with shop(settings) as client, await psycopg.AsyncConnection.connect(schema.server) as connection:
        async with connection.transaction():
            await client.publish(Placed(1), within=connection)
        await arrived(client, 1)
    schema.run("UPDATE service SET app = 'billing'")
    async with shop(settings) as client:
        with pytest.raises(StartRefused, match="billing"):
            await client.publish(Placed(2), within=object())


# ---- App.stage ----


@pytest.fixture
def staged_app(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Generator[App[None]]:
    monkeypatch.setenv("EVERLOG_LOG_URL", settings.log_url)
    monkeypatch.setenv("EVERLOG_STORE_URL", settings.store_url)
    app = App("shop")
    yield app
    app._stager.close()


def test_a_blocking_connection_of_psycopg_stages(schema: PostgresSchema, staged_app: App[None], settings: Settings) -> None:
    with psycopg.connect(schema.server) as connection:
        with connection.transaction():
            connection.execute(f"INSERT INTO {schema.app_schema}.bought VALUES (1)".encode())
            staged_app.stage(connection, Placed(1))
        with connection.transaction(force_rollback=True):
            staged_app.stage(connection, Placed(2))
        with connection.transaction():
            staged_app.stage(connection, Placed(3))
    assert sent(settings, 2) == [1, 3]
    assert bought(schema) == [1]


def test_a_session_and_a_connection_of_sqlalchemy_stage_from_many_threads(
    schema: PostgresSchema, staged_app: App[None], settings: Settings
) -> None:
    engine = sqlalchemy.create_engine(engine_url(schema), pool_size=8)
    errors: list[Exception] = []

    def work(first: int) -> None:
        try:
            for number in range(first, first + 10):
                with engine.begin() as connection:
                    connection.execute(sqlalchemy.text(f"INSERT INTO {schema.app_schema}.bought VALUES (:n)"), {"n": number})
                    staged_app.stage(connection, Placed(number, str(first)))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(0, 80, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.dispose()
    assert errors == []
    found = sent(settings, 80)
    assert sorted(found) == bought(schema) == list(range(80))
    for first in range(0, 80, 10):
        assert [number for number in found if first <= number < first + 10] == list(range(first, first + 10))


def sent(settings: Settings, count: int) -> list[int]:
    """Return the numbers of the first events in the log, read by a client of its own."""

    async def read() -> list[int]:
        async with App("reader").connect(settings) as client:
            return await arrived(client, count)

    return asyncio.run(read())


def test_what_is_not_a_connection_is_refused_by_name(staged_app: App[None], schema: PostgresSchema) -> None:
    unknown: Any = object()
    with pytest.raises(StoreError, match="object"):
        staged_app.stage(unknown, Placed(1))
    with psycopg.connect(schema.server, autocommit=True) as connection, pytest.raises(StoreError, match="transaction"):
        staged_app.stage(connection, Placed(1))
