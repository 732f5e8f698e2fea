"""A PostgreSQL server that is killed and comes back, under a log and a store that three workers use: nothing lost, nothing twice, in order."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.postgres import kill, own_server
from tests.processes.counting import Echoed, Stepped, counting, faults, seen
from tests.services.postgres import Postgres

from everlog import Client, Settings
from everlog.clock import SystemClock
from everlog.errors import EverlogError, PublishUnknown
from everlog.settings import open_store

WALKERS = 20
STEPS = 600
PATIENCE_S = 90.0


@pytest.fixture
def server() -> Generator[tuple[Postgres, str]]:
    with own_server() as lent:
        yield lent


def start_workers(settings: Settings, folder: Path, count: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "EVERLOG_LOG_URL": settings.log_url,
        "EVERLOG_STORE_URL": settings.store_url,
        "EVERLOG_LEASE_S": "1",
    }
    command = [
        str(Path(sys.executable).with_name("everlog")),
        "run",
        "tests.processes.counting:counting",
        "--workers",
        str(count),
    ]
    with (folder / "workers.log").open("wb") as said:
        return subprocess.Popen(command, cwd=Path(__file__).parents[2], env=environment, stdout=said, stderr=said)


async def walk(client: Client, walker: str) -> None:
    """Publish a walker's steps, one after another, however often the server goes away."""
    for number in range(STEPS):
        retry = None
        while True:
            try:
                await (client.publish(Stepped(walker, number), timeout_s=2) if retry is None else retry(timeout_s=2))
                break
            except PublishUnknown as error:
                retry = error.retry
            except EverlogError as error:
                if not error.retryable:
                    raise
                await asyncio.sleep(0.05)


async def counted(settings: Settings) -> tuple[dict[str, int], int]:
    """Return how many steps of each walker are counted, and how many faults."""
    store = await open_store(settings, counting.name, clock=SystemClock())
    try:
        rows = {key: seen.decode(row.value) for key, row in await store.scan(seen.name, "[]") if row.value is not None}
        return rows, len(await store.scan(faults.name, "[]"))
    finally:
        await store.aclose()


async def echoes(client: Client) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    async with asyncio.timeout(PATIENCE_S):
        async for record in client.follow(Echoed, start="beginning"):
            found.append((record.event.walker, record.event.number))
            if len(found) == WALKERS * STEPS:
                return found
    return found


async def test_nothing_is_lost_doubled_or_reordered_though_the_server_is_killed(
    server: tuple[Postgres, str], tmp_path: Path
) -> None:
    postgres, url = server
    settings = Settings(log_url=f"{url}?schema=log", store_url=f"{url}?schema={{app}}")
    workers = start_workers(settings, tmp_path, 3)
    try:
        async with counting.connect(settings) as client:
            walking = [asyncio.create_task(walk(client, f"w{number}")) for number in range(WALKERS)]
            for _ in range(3):
                await asyncio.sleep(1.0)  # under load
                await asyncio.to_thread(kill, postgres)
                await asyncio.to_thread(postgres.up)
            await asyncio.gather(*walking)
            found = await echoes(client)
            for walker in {one for one, _ in found}:
                assert [number for one, number in found if one == walker] == list(range(STEPS))
        rows, wrong = await counted(settings)
        assert sorted(rows.values()) == [STEPS] * WALKERS
        assert wrong == 0
    except BaseException as error:
        error.add_note((tmp_path / "workers.log").read_text()[-4_000:])
        raise
    finally:
        workers.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(workers.wait, 40) == 0


async def test_a_worker_that_is_stopped_past_its_lease_commits_nothing_stale(
    server: tuple[Postgres, str], tmp_path: Path
) -> None:
    _, url = server
    settings = Settings(log_url=f"{url}?schema=log", store_url=f"{url}?schema={{app}}")
    crews = [start_workers(settings, tmp_path, 1) for _ in range(3)]
    try:
        async with counting.connect(settings) as client:
            walking = [asyncio.create_task(walk(client, f"w{number}")) for number in range(WALKERS)]
            await asyncio.sleep(2.0)
            stopped, killed, _ = crews
            for pid in tree(stopped.pid):
                os.kill(pid, signal.SIGSTOP)
            for pid in tree(killed.pid):
                os.kill(pid, signal.SIGKILL)
            await asyncio.gather(*walking)
            await asyncio.sleep(2.5)  # past the lease, while the third one works
            for pid in tree(stopped.pid):
                os.kill(pid, signal.SIGCONT)
            found = await echoes(client)
            for walker in {one for one, _ in found}:
                assert [number for one, number in found if one == walker] == list(range(STEPS))
        rows, wrong = await counted(settings)
        assert sorted(rows.values()) == [STEPS] * WALKERS
        assert wrong == 0
    finally:
        for crew in crews:
            if crew.poll() is None:
                crew.send_signal(signal.SIGTERM)
        for crew in crews:
            await asyncio.to_thread(crew.wait, 40)


def tree(pid: int) -> list[int]:
    """Return a process and all that it has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in tree(int(child)))]
