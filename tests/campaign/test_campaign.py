"""A short campaign: everything is done to the processes that can be done to them, and nothing is lost, doubled or reordered."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest
from rich.console import Console
from tests.campaign.bugs import BUGS
from tests.campaign.campaign import Campaign
from tests.campaign.controls import control
from tests.campaign.harm import REPLAY, SERVER
from tests.campaign.plan import Plan, Result, Sample
from tests.campaign.points import POINTS
from tests.campaign.report import grown, show
from tests.postgres import kill, own_server

SECONDS = 20.0


async def test_whatever_is_done_to_its_processes_nothing_is_lost_doubled_or_reordered(tmp_path: Path) -> None:
    result = await Campaign(tmp_path, Plan(SECONDS, seed=5)).run()
    report = io.StringIO()
    show(result, Console(file=report, width=150))
    assert not result.faults, report.getvalue()
    kinds = {kind for kind in result.injected if not kind.startswith("kill at")}
    assert kinds >= {"kill -9 of a worker", "SIGSTOP of a worker beyond its lease", "answer of the log lost"}, report.getvalue()
    assert sum(kind.startswith("kill at") for kind in result.injected) >= 3, report.getvalue()
    assert result.injected == result.survived
    assert result.published > 1_000
    assert result.emitted > 1_000


async def test_a_kill_at_each_named_point_is_survived(tmp_path: Path) -> None:
    plan = Plan(300.0, seed=6, rate=600.0, points_once=True)
    result = await Campaign(tmp_path, plan).run()
    assert [str(fault) for fault in result.faults] == []
    assert {kind.removeprefix("kill at ") for kind in result.survived if kind.startswith("kill at")} == set(POINTS)


async def test_replays_under_kills_and_load_lose_double_and_reorder_nothing(tmp_path: Path) -> None:
    faults = {"kill": 2, "kill at a point": 2, "stop": 1, "replay": 2}
    plan = Plan(12.0, seed=8, rate=500.0, pause_s=0.4, faults=faults, kept_behind=1 << 40)
    result = await Campaign(tmp_path, plan).run()
    assert [str(fault) for fault in result.faults] == []
    assert result.injected[REPLAY] >= 3
    assert result.injected == result.survived


async def test_on_postgresql_nothing_is_lost_doubled_or_reordered_though_the_server_is_killed_too(tmp_path: Path) -> None:
    with own_server() as (server, url):

        async def again() -> None:
            await asyncio.to_thread(kill, server)
            await asyncio.to_thread(server.up)

        faults = {"kill": 4, "stop": 4, "join": 1, "leave": 1, "roll": 1, "kill the server": 1}
        plan = Plan(
            20.0,
            seed=9,
            rate=600.0,
            pause_s=0.4,
            faults=faults,
            lease_s=1.0,
            log_url=f"{url}?schema=log",
            store_url=f"{url}?schema={{app}}",
        )
        result = await Campaign(tmp_path, plan, again).run()
    assert [str(fault) for fault in result.faults] == []
    assert result.injected == result.survived
    assert result.injected[SERVER] >= 1
    assert result.published > 1_000
    assert result.emitted > 1_000


@pytest.mark.parametrize("name", BUGS)
async def test_each_seeded_bug_is_caught(name: str) -> None:
    caught = await control(name)
    assert caught.faults, f"{name} got through: {BUGS[name].text}"


def _sample(at_s: float, *, kib: int = 40_000, files: int = 20, wal: int = 4 << 20) -> Sample:
    return Sample(at_s, {"billing": kib}, {"billing": files}, wal)


def _result(samples: list[Sample], latencies: list[tuple[float, float]]) -> Result:
    result = Result(Plan(1_000.0, 1))
    result.samples = samples
    result.latencies = latencies
    return result


def test_a_report_says_what_grew() -> None:
    calm = [(float(at), 0.001) for at in range(100)]
    assert grown(_result([_sample(at) for at in range(100)], calm)) == []
    assert "memory of the billing" in grown(_result([_sample(at, kib=40_000 + 1_000 * at) for at in range(100)], calm))[0]
    assert "open files" in grown(_result([_sample(at, files=20 + at) for at in range(100)], calm))[0]
    assert "WAL" in grown(_result([_sample(at, wal=at << 21) for at in range(100)], calm))[0]
    slower = [(float(at), 0.001 * 1.05**at) for at in range(100)]
    assert "publishing took" in grown(_result([_sample(at) for at in range(100)], slower))[0]
