"""The Celery example in real worker processes: what runs twice, or is sent again after a kill, is one event."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples/celery"
BIN = Path(sys.executable).parent
SEND = "import sys; from jobs import import_order; [import_order.delay('ada', int(number)) for number in sys.argv[1:]]"


class Worker:
    """`celery worker` with two forked processes, as a process group of its own."""

    def __init__(self, folder: Path) -> None:
        command = [str(BIN / "celery"), "--app", "jobs", "worker", "--concurrency", "2", "--loglevel", "INFO"]
        self.popen = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self.wait_for("ready.")

    def wait_for(self, text: str, times: int = 1) -> None:
        assert self.popen.stdout is not None
        while times:
            line = self.popen.stdout.readline()
            assert line, "the worker has ended"
            times -= text in line

    def kill(self) -> None:
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.communicate()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(EXAMPLE, tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "app"


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[[], Worker]]:
    """Start a worker. Tasks are sent before: in a folder, Celery may take a message that is not written to its end yet."""
    started: list[Worker] = []

    def begin() -> Worker:
        started.append(Worker(folder))
        return started[-1]

    yield begin
    for worker in started:
        worker.kill()


def send(folder: Path, *numbers: int) -> None:
    subprocess.run([sys.executable, "-c", SEND, *map(str, numbers)], cwd=folder, check=True, timeout=60, capture_output=True)


def stored(folder: Path) -> list[int]:
    topics = json.loads(
        subprocess.run([BIN / "everlog", "topics", "--json"], cwd=folder, capture_output=True, check=True, timeout=30).stdout
    )
    count = next(topic["events"] for topic in topics if topic["name"] == "erp.imports")
    command = [str(BIN / "everlog"), "tail", "--topic", "erp.imports", "--from", "beginning", "--json", "--limit", str(count)]
    text = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30, check=True).stdout
    return sorted(json.loads(line)["data"]["order"] for line in text.splitlines())


def test_a_task_that_comes_twice_is_one_event(start: Callable[[], Worker], folder: Path) -> None:
    send(folder, *range(20), *range(20))
    start().wait_for("succeeded in", times=40)
    assert stored(folder) == list(range(20))


def test_what_is_sent_again_after_a_kill_is_there_once(start: Callable[[], Worker], folder: Path) -> None:
    send(folder, *range(30))
    worker = start()
    worker.wait_for("succeeded in", times=5)
    worker.kill()  # what was in its hands, the folder has forgotten
    send(folder, *range(30))
    start().wait_for("succeeded in", times=30)
    ledger = subprocess.Popen(
        [BIN / "everlog", "run", "imports"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        while len(set(found := stored(folder))) < 30:
            pass  # the rest of what was sent first is still on its way
        assert found == list(range(30))
        assert ledger.stdout is not None
        while "booked order 29 of ada" not in (line := ledger.stdout.readline()):
            assert line, "the service has ended"
    finally:
        ledger.kill()
        ledger.communicate()
