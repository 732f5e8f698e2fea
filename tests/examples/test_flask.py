"""The Flask example under gunicorn with preload: every vote that was answered is in the log once, whatever happens to a worker."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples/flask"
BIN = Path(sys.executable).parent


class Gunicorn:
    """gunicorn with the example's configuration, on a port that is free."""

    def __init__(self, folder: Path) -> None:
        command = [str(BIN / "gunicorn"), "--config", "gunicorn_conf.py", "--bind", "127.0.0.1:0", "polls:web"]
        self.popen = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.url = ""
        self.workers: list[int] = []
        while not self.url or len(self.workers) < 2:
            line = self.line()
            if found := re.search(r"Listening at: (\S+)", line):
                self.url = found[1]
            if found := re.search(r"Booting worker with pid: (\d+)", line):
                self.workers.append(int(found[1]))

    def line(self) -> str:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        assert line, "gunicorn has ended"
        return line

    def vote(self, number: int, **changed: object) -> int:
        body = {"poll": "lunch", "vote": str(number), "choice": ("soup", "rice")[number % 2]} | changed
        request = urllib.request.Request(f"{self.url}/votes", json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def vote_until_answered(self, number: int) -> int:
        for _ in range(50):
            try:
                return self.vote(number)
            except OSError:  # its worker was killed: nobody knows, and the browser asks again
                continue
        raise AssertionError("no answer")

    def end(self) -> int:
        self.popen.send_signal(signal.SIGTERM)
        self.popen.communicate(timeout=30)
        return self.popen.returncode


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    shutil.copytree(EXAMPLE, tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "app"


@pytest.fixture
def gunicorn(shop: Path) -> Iterator[Gunicorn]:
    started = Gunicorn(shop)
    yield started
    if started.popen.poll() is None:
        started.popen.kill()
        started.popen.communicate()


def stored(shop: Path, count: int) -> list[str]:
    command = [str(BIN / "everlog"), "tail", "--topic", "polls.votes", "--from", "beginning", "--json", "--limit", str(count)]
    text = subprocess.run(command, cwd=shop, capture_output=True, text=True, timeout=30, check=True).stdout
    return sorted(json.loads(line)["data"]["vote"] for line in text.splitlines())


def counted(shop: Path) -> int:
    command = [str(BIN / "everlog"), "topics", "--json"]
    topics = json.loads(subprocess.run(command, cwd=shop, capture_output=True, text=True, timeout=30, check=True).stdout)
    return next(int(topic["events"]) for topic in topics if topic["name"] == "polls.votes")


def test_votes_of_many_threads_are_stored_and_counted_once(gunicorn: Gunicorn, shop: Path) -> None:
    tally = subprocess.Popen(
        [BIN / "everlog", "run", "ballots"], cwd=shop, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(gunicorn.vote, [*range(60), *range(60)])) == {202}
        assert stored(shop, 60) == sorted(map(str, range(60)))
        assert counted(shop) == 60
        assert tally.stdout is not None
        wanted = {"lunch: soup has 30\n", "lunch: rice has 30\n"}
        while wanted:
            line = tally.stdout.readline()
            assert line, "the service has ended"
            wanted.discard(line)
    finally:
        tally.kill()
        tally.communicate()
    assert gunicorn.end() == 0


def test_a_killed_worker_loses_nothing_that_was_answered(gunicorn: Gunicorn, shop: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        first = [threads.submit(gunicorn.vote_until_answered, number) for number in range(40)]
        os.kill(gunicorn.workers[0], signal.SIGKILL)
        assert {one.result() for one in first} == {202}
    assert counted(shop) == 40
    assert stored(shop, 40) == sorted(map(str, range(40)))


def test_what_is_no_vote_is_refused_with_its_field(gunicorn: Gunicorn, shop: Path) -> None:
    assert gunicorn.vote(1, choice=7) == 422
    assert gunicorn.vote(1, poll=None) == 422
    assert gunicorn.vote(1) == 202
    assert gunicorn.vote(1, choice="bread") == 503, "another vote under the same id"
