"""A service manager hears what it waits for."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.shop import PATIENCE_S

from everlog.cli.notify import ServiceManager


@pytest.fixture
def line() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.settimeout(PATIENCE_S)
        yield made


def test_it_is_told_that_the_service_runs_and_that_it_stops(tmp_path: Path, line: socket.socket) -> None:
    line.bind(str(tmp_path / "notify"))
    manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    manager.ready()
    manager.stopping()
    assert [line.recv(100), line.recv(100)] == [b"READY=1", b"STOPPING=1"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="only Linux has abstract addresses")
def test_its_address_may_be_no_file(line: socket.socket) -> None:
    line.bind(f"\0everlog-{os.getpid()}")
    ServiceManager({"NOTIFY_SOCKET": f"@everlog-{os.getpid()}"}).ready()
    assert line.recv(100) == b"READY=1"


async def test_its_watchdog_is_kept_quiet(tmp_path: Path, line: socket.socket) -> None:
    line.bind(str(tmp_path / "notify"))
    manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000"})
    keeping = asyncio.create_task(manager.keep_watchdog())
    assert [await asyncio.to_thread(line.recv, 100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    keeping.cancel()


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "2000"},
        {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "2000", "WATCHDOG_PID": "1"},  # another process's
        {"NOTIFY_SOCKET": "/nowhere"},
    ],
)
async def test_without_a_watchdog_nothing_is_kept_quiet(environ: dict[str, str]) -> None:
    await ServiceManager(environ).keep_watchdog()


def test_a_service_manager_that_is_gone_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    ServiceManager({"NOTIFY_SOCKET": "/nowhere"}).ready()
    assert "the service manager was not told READY=1" in caplog.text
