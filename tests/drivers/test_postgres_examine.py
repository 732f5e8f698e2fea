"""What `everlog doctor` finds out about a log and a store in PostgreSQL without changing anything."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from urllib.parse import urlsplit

import pytest
from tests.postgres import PostgresSchema
from tests.servers import postgres_url

from everlog.clock import SystemClock
from everlog.drivers.postgres.examine import _durability, _server
from everlog.finding import Finding, Level
from everlog.logs import postgres as logs
from everlog.store import RELAY, AppSpec
from everlog.stores import postgres as stores
from everlog.testing.clock import ManualClock

APP = AppSpec("billing", [])


@pytest.fixture
def schema() -> Generator[PostgresSchema]:
    made = PostgresSchema(postgres_url())
    yield made
    made.drop()


def levels(findings: Sequence[Finding]) -> dict[str, Level]:
    return {one.name: one.level for one in findings}


async def test_of_what_is_missing_it_says_what_to_do_and_makes_nothing(schema: PostgresSchema) -> None:
    for _ in range(2):
        found = (await logs.examine_log(schema.url, clock=SystemClock())).findings
        assert levels(found)["tables"] is Level.WARNING
        assert "run an app" in found[-1].advice


async def test_a_log_is_shown_with_its_server_and_its_identity(schema: PostgresSchema) -> None:
    log = await logs.open_log(schema.url, clock=SystemClock())
    looked = await logs.examine_log(schema.url, clock=SystemClock())
    assert looked.log == log.identity
    assert set(levels(looked.findings).values()) == {Level.OK}
    assert {"server", "durability", "checksums", "clock", "connections", "tables", "time"} <= set(levels(looked.findings))
    await log.aclose()
    ahead = levels((await logs.examine_log(schema.url, clock=ManualClock(wall_us=1))).findings)
    assert ahead["clock"] is Level.WARNING


async def test_a_server_that_does_not_answer_or_let_us_in_is_a_problem_and_no_password_is_shown(schema: PostgresSchema) -> None:
    parts = urlsplit(schema.server)
    for port in (1, parts.port):
        found = (await logs.examine_log(f"postgresql://app:hidden-word@127.0.0.1:{port}/app", clock=SystemClock())).findings
        assert levels(found) == {"server": Level.PROBLEM}
        assert "hidden-word" not in found[0].found


async def test_a_store_is_shown_with_its_app_and_who_works_on_it(schema: PostgresSchema) -> None:
    log = (await logs.examine_log(schema.url, clock=SystemClock())).log
    assert log is None
    store = await stores.open_store(schema.url, clock=SystemClock(), lease_s=30)
    await store.register(APP, log=store.identity)
    await store.join({}, alive_s=60)
    assert await store.acquire(RELAY) is not None
    looked = await stores.examine_store(schema.url, app="billing", clock=SystemClock(), lease_s=30)
    assert looked.log == store.identity
    assert {one.name: one.found for one in looked.findings}["members"] == "1 at work"
    assert levels(looked.findings)["app"] is Level.OK
    wrong = levels((await stores.examine_store(schema.url, app="shipping", clock=SystemClock(), lease_s=30)).findings)
    assert wrong["app"] is Level.PROBLEM
    schema.run("UPDATE member SET seen_us = 0")
    silent = levels((await stores.examine_store(schema.url, app="billing", clock=SystemClock(), lease_s=30)).findings)
    assert Level.WARNING in silent.values()
    await store.aclose()


@pytest.mark.parametrize(
    ("fsync", "full_pages", "commit", "level"),
    [
        ("on", "on", "on", Level.OK),
        ("on", "on", "remote_apply", Level.OK),
        ("off", "on", "on", Level.PROBLEM),
        ("on", "off", "on", Level.PROBLEM),
        ("on", "on", "off", Level.PROBLEM),
    ],
)
def test_a_server_that_acknowledges_what_it_may_lose_is_a_problem(fsync: str, full_pages: str, commit: str, level: Level) -> None:
    assert _durability(fsync, full_pages, commit).level is level


def test_an_old_or_crowded_server_and_one_without_checksums_are_named() -> None:
    found = {what: judged.level for what, judged in _server((120_000, "12.1", "on", "on", "on", "off", 0, 3, False), 0)}
    assert found["server"] is Level.PROBLEM
    assert found["checksums"] is found["connections"] is Level.WARNING
    assert found["clock"] is found["rights"] is Level.OK
