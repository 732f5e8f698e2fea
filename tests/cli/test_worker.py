"""A worker process as its supervisor sees it: its silence, its stop, its end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from tests.cli.shop import PATIENCE_S

from everlog.cli import worker as module
from everlog.cli.worker import START_S, Silence, Work, Worker, end_in_words


def _looks_until_too_long(silence: Silence, seconds: float) -> int:
    """Return after how many looks, so many seconds apart, the silence has lasted too long."""
    return next(look for look in range(1, 10_000) if silence.passed(seconds))


def test_a_worker_is_silent_for_too_long_after_two_leases() -> None:
    silence = Silence(lease_s=2.0)
    for _ in range(3):
        silence.heard()
        assert _looks_until_too_long(silence, 0.5) == 1 + 8  # the first look is what the silence is counted from


def test_a_start_has_a_bound_of_its_own() -> None:
    silence = Silence(lease_s=2.0)
    assert _looks_until_too_long(silence, 0.5) == START_S / 0.5


@pytest.mark.parametrize("lease_s", [0.1, 0.5, 5.0, 3_600.0])
def test_a_supervisor_that_was_stopped_itself_blames_nobody_when_it_wakes(lease_s: float) -> None:
    silence = Silence(lease_s)
    silence.heard()
    assert not silence.passed(silence.look_every_s)
    assert not silence.passed(10 * lease_s)
    silence.heard()
    assert not silence.passed(silence.look_every_s)


@pytest.mark.parametrize(("lease_s", "every_s"), [(0.4, 0.1), (4.0, 1.0), (3_600.0, 1.0)])
def test_it_looks_a_few_times_in_a_lease_and_at_least_every_second(lease_s: float, every_s: float) -> None:
    assert Silence(lease_s).look_every_s == every_s


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "ended with code 0 (in order)"),
        (1, "ended with code 1 (an error)"),
        (2, "ended with code 2 (wrong usage)"),
        (4, "ended with code 4 (start refused)"),
        (77, "ended with code 77"),
        (-9, "was ended by SIGKILL"),
        (-15, "was ended by SIGTERM"),
        (-40, "was ended by signal 40"),
    ],
)
def test_an_end_is_told_in_words(code: int, words: str) -> None:
    assert end_in_words(code) == words


# ---- processes ----

DEAF = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint(end='', flush=True)\n"
SAYS = "import os, socket\nsocket.socket(fileno=int(os.environ['EVERLOG_SUPERVISOR'].strip('+'))).send(b'.')\n"
WAITS = "import threading\nthreading.Event().wait()\n"


def work_of(code: str, *, lease_s: float = 3_600.0, grace_s: float = 0.0) -> Work:
    return Work([sys.executable, "-c", code], lease_s, grace_s)


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


async def end_of(worker: Worker) -> int:
    async with asyncio.timeout(PATIENCE_S):
        return await worker.ended()


async def running(work: Work) -> Worker:
    """Start a worker, and wait until it is running."""
    is_running = asyncio.Event()
    worker = Worker(1, work, introduces=True, on_running=is_running.set)
    async with asyncio.timeout(PATIENCE_S):
        await is_running.wait()
    return worker


async def test_a_worker_that_is_not_running_in_time_is_killed(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "START_S", 0.2)
    worker = Worker(1, work_of(WAITS, lease_s=0.2), introduces=True, on_running=lambda: None)
    assert await end_of(worker) == -signal.SIGKILL
    assert caplog.messages == ["worker 1 was not running after 0.2 s: killed"]


async def test_a_worker_that_does_not_stop_is_killed_after_its_grace_period(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MARGIN_S", 0.1)
    worker = await running(work_of(DEAF + SAYS + WAITS, grace_s=0.1))
    worker.stop()
    worker.stop()
    assert await end_of(worker) == -signal.SIGKILL
    assert caplog.messages == ["worker 1 has not stopped within 0.2 s: killed"]


async def test_an_end_is_noticed_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    assert await end_of(await running(work_of(SAYS, lease_s=0.4))) == 0


async def test_what_is_asked_of_a_worker_that_has_ended_changes_nothing() -> None:
    worker = await running(work_of(SAYS + "raise SystemExit(7)\n"))
    assert await end_of(worker) == 7
    worker.stop()
    worker.kill()
    assert await end_of(worker) == 7


async def test_a_worker_that_the_system_does_not_start_leaves_nothing_behind() -> None:
    before = open_files()
    with pytest.raises(FileNotFoundError):
        Worker(1, Work(["/nowhere"], 1.0, 1.0), introduces=True, on_running=lambda: None)
    assert open_files() == before
