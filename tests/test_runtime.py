"""What an app's process does beside handling: it has the log delete what the topics no longer keep."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest
from tests.subscriptions.world import World, make_world

from everlog import App, Event, Topic
from everlog.errors import LogReadOnly
from everlog.runtime import RETAIN_EVERY_S
from everlog.subscriptions.relay import Relay

readings = Topic("test.readings", key="sensor", partitions=2, keep_s=60.0)


@readings.event("test.reading_taken/1")
class ReadingTaken(Event):
    sensor: str
    n: int = 0


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A world whose app has handled three events that are too old now."""
    app = App("weather")

    @app.on(ReadingTaken)
    async def take(event: ReadingTaken) -> None:
        pass

    made = await make_world(app, monkeypatch)
    await made.start()
    for n in range(3):
        await made.client.publish(ReadingTaken("a", n))
    await made.settle()
    yield made
    await made.aclose()


async def _turns(world: World, count: int) -> None:
    for _ in range(count):
        await world.tick(RETAIN_EVERY_S)


async def _kept(world: World) -> int:
    first = await world.log.first(readings.name)
    return (await world.log.backlog(readings.name, {where.partition: offset for where, offset in first.offsets.items()})).count


async def test_what_is_too_old_is_deleted_while_the_app_runs_and_said_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "everlog")
    await _turns(world, 2)
    assert await _kept(world) == 3
    world.clock.advance(61)
    await _turns(world, 20)
    assert await _kept(world) == 0
    said = [record.getMessage() for record in caplog.records if "no longer keep" in record.getMessage()]
    assert said == ["weather: deleted 3 events that their topics no longer keep"]


async def test_a_log_that_takes_no_writes_is_a_warning_and_tried_again(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    retain = world.log.retain
    calls: list[int] = []

    async def full() -> int:
        calls.append(1)
        if len(calls) < 3:
            raise LogReadOnly("the log takes no writes")
        return await retain()

    monkeypatch.setattr(world.log, "retain", full)
    world.clock.advance(61)
    await _turns(world, 20)
    assert await _kept(world) == 0
    warnings = [
        record for record in caplog.records if record.levelno == logging.WARNING and "stays for now" in record.getMessage()
    ]
    assert len(warnings) == 2


@pytest.mark.parametrize("why", ["another process sends the outbox", "the log keeps everything"])
async def test_only_who_sends_the_outbox_deletes_and_only_where_the_log_can(
    world: World, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    seeds: dict[str, Callable[[], None]] = {
        "another process sends the outbox": lambda: monkeypatch.setattr(Relay, "is_ours", False),
        "the log keeps everything": lambda: monkeypatch.setattr(
            world.log, "features", msgspec.structs.replace(world.log.features, retention=False)
        ),
    }
    seeds[why]()
    world.clock.advance(61)
    await _turns(world, 20)
    assert await _kept(world) == 3
