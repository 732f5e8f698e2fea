"""The client that blocks: from many threads, in a running loop, after a fork."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.subscriptions.world import Left, Right

import everlog
from everlog import App, Settings
from everlog.errors import Closed, EventRefused, FilePlace, IdempotencyKeyReused, NotInHandler, PositionRefused
from everlog.subscriptions.context import in_handler

app = App("script")


def settings_in(folder: Path) -> Settings:
    return Settings(log_url=f"sqlite:{folder}/log.db", store_url=f"sqlite:{folder}/{{app}}.db")


def test_a_script_publishes_and_reads_back_without_await(tmp_path: Path) -> None:
    with everlog.blocking(app, settings_in(tmp_path)) as client:
        published = client.publish(Left("a", 1), Right("a", 2), headers={"trace": "x"})
        assert len(published.ids) == 2
        found = list(client.follow(Left, Right, start="beginning", timeout_s=0.2))
        assert sorted((record.event.n, record.headers["trace"]) for record in found) == [(1, "x"), (2, "x")]
        later = client.follow(Left, after=found[0].position, key="a")
        client.publish(Left("b", 3), Left("a", 4))
        assert next(record.event.n for record in later if record.event.n > 1) == 4


def test_errors_are_those_of_the_client(tmp_path: Path) -> None:
    with everlog.blocking(app, settings_in(tmp_path)) as client:
        with pytest.raises(EventRefused, match="expected at least one event"):
            client.publish()
        client.publish(Left("a", 1), idempotency_key="k")
        with pytest.raises(IdempotencyKeyReused):
            client.publish(Left("a", 2), idempotency_key="k")
        with pytest.raises(PositionRefused):
            next(client.follow(Left, after="nonsense"))
        token = in_handler.set(True)
        try:
            with pytest.raises(NotInHandler):
                client.publish(Left("a", 3))
        finally:
            in_handler.reset(token)
        assert [record.event.n for record in client.follow(Left, start="beginning", timeout_s=0.1)] == [1]


def test_threads_share_one_client_and_each_keeps_its_order(tmp_path: Path) -> None:
    with everlog.blocking(app, settings_in(tmp_path)) as client, ThreadPoolExecutor(16) as pool:

        def work(number: int) -> None:
            for n in range(100):
                client.publish(Left(f"k{number}", n))

        list(pool.map(work, range(16)))
        found: defaultdict[str, list[int]] = defaultdict(list)
        for record in client.follow(Left, start="beginning", timeout_s=0.5):
            found[record.event.key].append(record.event.n)
    assert found == {f"k{number}": list(range(100)) for number in range(16)}


async def test_it_works_where_a_loop_runs_already_as_in_a_notebook(tmp_path: Path) -> None:
    assert asyncio.get_running_loop().is_running()
    with everlog.blocking(app, settings_in(tmp_path)) as client:
        client.publish(Left("a", 1))
        assert [record.event.n for record in client.follow(Left, start="beginning", timeout_s=0.1)] == [1]


def test_what_is_not_open_is_refused_and_closing_twice_is_no_fault(tmp_path: Path) -> None:
    client = everlog.blocking(app, settings_in(tmp_path))
    with pytest.raises(Closed, match="is not open"):
        client.publish(Left("a", 1))
    client.open().open()
    client.publish(Left("a", 1))
    reading = client.follow(Left, start="beginning")
    assert next(reading).event.n == 1
    client.close()
    client.close()
    for call in (lambda: client.publish(Left("a", 2)), lambda: next(reading), lambda: next(client.follow(Left))):
        with pytest.raises(Closed):
            call()
    with client.open():
        client.publish(Left("a", 2))
    assert not [thread for thread in threading.enumerate() if thread.name == "everlog-blocking"]


def test_what_cannot_be_opened_raises_where_it_is_opened(tmp_path: Path) -> None:
    client = everlog.blocking(app, settings_in(Path("/proc/no")))
    for _ in range(2):
        with pytest.raises(FilePlace):
            client.open()
    assert not [thread for thread in threading.enumerate() if thread.name == "everlog-blocking"]


def test_who_waits_is_told_when_another_thread_closes(tmp_path: Path) -> None:
    client = everlog.blocking(app, settings_in(tmp_path)).open()
    waiting = threading.Event()
    told: list[BaseException] = []

    def follow() -> None:
        records = client.follow(Left)
        waiting.set()
        try:
            next(records)
        except Closed as error:
            told.append(error)

    thread = threading.Thread(target=follow)
    thread.start()
    waiting.wait()
    client.close()
    thread.join(10)
    assert len(told) == 1


FORKS = """
import os, sys
import everlog
from everlog import App, Event, Settings, Topic
from everlog.errors import Closed, FilePlace

things = Topic("things", key=None)

@things.event("thing/1")
class Thing(Event):
    n: int

folder = sys.argv[1]
client = everlog.blocking(App("script"), Settings(log_url=f"sqlite:{folder}/log.db")).open()
client.publish(Thing(1))
"""

FORKED_OPEN = """
child = os.fork()
if not child:
    for call in (lambda: client.publish(Thing(2)), client.open, lambda: client.publish(Thing(2)), client.open):
        try:
            call()
        except (Closed, FilePlace) as error:
            print(type(error).__name__, "after the fork and not before" in str(error), flush=True)
    client.close()
    os._exit(0)
_, status = os.waitpid(child, 0)
client.publish(Thing(4))
print(status, sorted(record.event.n for record in client.follow(Thing, start="beginning", timeout_s=0.3)), flush=True)
client.close()
"""

FORKED_CLOSED = """
client.close()
forked, waits = os.pipe(), os.pipe()
child = os.fork()
if not child:
    os.close(waits[1])
    client.open().publish(Thing(2))
    os.write(forked[1], b"x")
    os.read(waits[0], 1)
    client.publish(Thing(4))
    client.close()
    os._exit(0)
os.read(forked[0], 1)
client.open().publish(Thing(3))
client.close()
os.close(waits[1])
_, status = os.waitpid(child, 0)
client.open()
print(status, sorted(record.event.n for record in client.follow(Thing, start="beginning", timeout_s=0.3)), flush=True)
client.close()
"""


async def printed(code: str, folder: Path) -> list[str]:
    run = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(folder), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, error = await asyncio.wait_for(run.communicate(), 30)
    assert run.returncode == 0, error.decode()
    return out.decode().splitlines()


async def test_what_was_open_before_a_fork_is_refused_in_the_fork_and_goes_on_in_the_parent(tmp_path: Path) -> None:
    closed, place = "Closed True", "FilePlace True"
    assert await printed(FORKS + FORKED_OPEN, tmp_path) == [closed, place, "Closed False", place, "0 [1, 4]"]


async def test_a_fork_of_a_closed_client_opens_it_for_itself(tmp_path: Path) -> None:
    assert await printed(FORKS + FORKED_CLOSED, tmp_path) == ["0 [1, 2, 3, 4]"]


def test_threads_that_open_at_once_open_it_once(tmp_path: Path) -> None:
    client = everlog.blocking(app, settings_in(tmp_path))
    at_once = threading.Barrier(16)

    def work(number: int) -> None:
        at_once.wait()
        client.open().publish(Left(f"k{number}", number))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    assert len([thread for thread in threading.enumerate() if thread.name == "everlog-blocking"]) == 1
    assert len(list(client.follow(Left, start="beginning", timeout_s=0.2))) == 16
    client.close()


async def test_ctrl_c_ends_the_waiting_and_the_client_goes_on(tmp_path: Path) -> None:
    code = FORKS + (
        "try:\n    print('waits', flush=True)\n    next(client.follow(Thing))\nexcept KeyboardInterrupt:\n    print('stopped', flush=True)\n"
        "client.publish(Thing(5))\nclient.close()\nprint('done', flush=True)\n"
    )
    run = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(tmp_path), stdout=asyncio.subprocess.PIPE)
    assert run.stdout is not None
    assert (await run.stdout.readline()).strip() == b"waits"
    run.send_signal(2)
    rest = await asyncio.wait_for(run.stdout.read(), 30)
    assert rest.decode().split() == ["stopped", "done"]
    assert await run.wait() == 0
