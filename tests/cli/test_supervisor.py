"""`everlog run --workers`: real processes, killed, stopped, hung and restarted."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.cli.shop import EVERLOG, PATIENCE_S, Cli, Process, Start, publish
from typer.main import get_command

from everlog.cli.root import app
from everlog.cli.run import _worker_command

CREW = """
import os
import pathlib
import time

from everlog import App, Delivery
from shop import OrderPlaced

crew = App("crew", delivery=Delivery(time_limit_s=1.0))
calm = App("calm")
me = os.environ.get("EVERLOG_WORKER")


def say(line):
    os.write(1, f"{line}\\n".encode())


def once(name):
    try:
        pathlib.Path(name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@crew.on(OrderPlaced)
@calm.on(OrderPlaced)
async def serve(order: OrderPlaced) -> None:
    if order.customer == "hang" and once("hung"):
        say("hangs")
        time.sleep(3_600)
    if order.customer == "busy":
        time.sleep(1.5)
    say(f"worker {me} served {order.customer}")
"""

Crew = Callable[..., Process]


@pytest.fixture
def crew(shop: Path, start: Start) -> Crew:
    """Start a supervisor of two workers, and wait until they are running."""
    (shop / "crew.py").write_text(CREW)

    def make(*arguments: str, app: str = "crew:crew") -> Process:
        supervisor = start("run", app, "--workers", "2", *arguments)
        supervisor.wait_for("worker 1 is running")
        supervisor.wait_for("worker 2 is running")
        return supervisor

    return make


def pid_of(supervisor: Process, number: int) -> int:
    """Return the process that was the last one to be started under a number."""
    return int(re.findall(rf"worker {number} is started, pid (\d+)", supervisor.text)[-1])


def events_of(supervisor: Process) -> list[str]:
    """Return what the supervisor has said of its workers, without processes and times."""
    said = re.findall(r"^\S+ (?:INFO|WARNING|ERROR) (worker \d [a-z][^,:\n]*|all [^\n]*)", supervisor.text, re.MULTILINE)
    return [line.strip() for line in said]


def wait_for_all(supervisor: Process, *texts: str) -> None:
    """Wait for lines that may come in any order."""
    missing = set(texts)
    while missing:
        line = supervisor.wait_for("")
        missing = {text for text in missing if text not in line}


def until_served_by(supervisor: Process, cli: Cli, numbers: set[int]) -> None:
    """Publish until each of these workers has served somebody."""
    end_s = time.monotonic() + PATIENCE_S
    while numbers:
        assert time.monotonic() < end_s, f"{numbers} serve nobody:\n{supervisor.text}"
        customers = [f"customer {number}" for number in range(20)]
        publish(cli, *customers)
        for _ in customers:
            numbers = numbers - {int(supervisor.wait_for(" served ").split()[1])}


def test_workers_share_the_work_and_say_who_they_are(crew: Crew, cli: Cli) -> None:
    supervisor = crew("--log-level", "debug")
    until_served_by(supervisor, cli, {1, 2})
    assert supervisor.end(signal.SIGTERM) == 0
    assert supervisor.text.count("crew is running") == 1
    assert supervisor.text.count("\nstopped") == 1
    for number in (1, 2):
        assert re.search(rf"^\S+ [A-Z]+ worker {number}: crew: ", supervisor.text, re.MULTILINE)
    assert not re.search(r"^\S+ [A-Z]+ crew: ", supervisor.text, re.MULTILINE)


def test_a_worker_that_is_killed_is_started_again(crew: Crew, cli: Cli) -> None:
    supervisor = crew()
    os.kill(pid_of(supervisor, 1), signal.SIGKILL)
    supervisor.wait_for("WARNING worker 1 was ended by SIGKILL: starting again in 0.5 s")
    supervisor.wait_for("worker 1 is running")
    until_served_by(supervisor, cli, {1, 2})
    assert supervisor.end(signal.SIGTERM) == 0
    assert supervisor.text.count("crew is running") == 1


def test_a_worker_that_stands_still_is_killed_after_two_leases_and_replaced(crew: Crew, cli: Cli) -> None:
    supervisor = crew("--lease-s", "0.5")
    os.kill(pid_of(supervisor, 2), signal.SIGSTOP)
    supervisor.wait_for("WARNING worker 2 has given no sign of life for 1 s: killed")
    supervisor.wait_for("worker 2 was ended by SIGKILL: starting again")
    supervisor.wait_for("worker 2 is running")
    until_served_by(supervisor, cli, {1, 2})
    assert supervisor.end(signal.SIGTERM) == 0


def test_a_worker_whose_handler_blocks_the_event_loop_past_its_time_limit_ends_and_is_replaced(crew: Crew, cli: Cli) -> None:
    supervisor = crew("--lease-s", "0.5")
    publish(cli, "hang")
    supervisor.wait_for("hangs")
    wait_for_all(supervisor, "has blocked the event loop", "ended with code 70: starting again", " served hang")
    assert supervisor.end(signal.SIGTERM) == 0


def test_a_handler_that_blocks_the_event_loop_within_its_time_limit_is_left_alone(crew: Crew, cli: Cli) -> None:
    supervisor = crew("--lease-s", "0.5", app="crew:calm")
    publish(cli, "busy")
    supervisor.wait_for(" served busy")
    assert supervisor.end(signal.SIGTERM) == 0
    assert "killed" not in supervisor.text


def test_a_worker_that_ends_again_and_again_is_started_again_later_each_time(shop: Path, start: Start) -> None:
    (shop / "fragile.py").write_text(
        "import os, pathlib\nif not pathlib.Path('mended').exists():\n    os._exit(77)\nfrom shop import *\n"
    )
    supervisor = start("run", "fragile:billing", "--workers", "2")
    supervisor.wait_for("worker 1 ended with code 77: starting again in 0.5 s")
    supervisor.wait_for("worker 1 ended with code 77: starting again in 1 s")
    (shop / "mended").touch()
    supervisor.wait_for("worker 2 is running")
    assert supervisor.end(signal.SIGTERM) == 0


def test_one_signal_stops_all_workers_in_order(crew: Crew) -> None:
    supervisor = crew()
    assert supervisor.end(signal.SIGTERM) == 0
    assert "stopping 2 workers (SIGTERM)" in supervisor.text
    assert sorted(events_of(supervisor)[-2:]) == [f"worker {each} ended with code 0 (in order)" for each in (1, 2)]
    assert supervisor.lines[-1] == "stopped"


def test_a_worker_that_is_told_to_stop_twice_stops_in_order_nevertheless(shop: Path, cli: Cli, start: Start) -> None:
    publish(cli, "slow")
    supervisor = start("run", "shop:billing", "--workers", "2", "--grace-s", "0.3")
    supervisor.wait_for("handling")
    supervisor.wait_for("worker 2 is running")
    for number in (1, 2):  # as a service manager does that signals every process of a service
        os.kill(pid_of(supervisor, number), signal.SIGTERM)
    assert supervisor.end(signal.SIGTERM) == 0
    assert "the grace period of 0.3 s is over" in supervisor.text
    assert "143" not in supervisor.text


@pytest.mark.parametrize(("second", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_kills_all_workers_at_once(shop: Path, cli: Cli, start: Start, second: signal.Signals, code: int) -> None:
    publish(cli, "slow")
    supervisor = start("run", "shop:billing", "--workers", "2", "--grace-s", "3600")
    supervisor.wait_for("handling")
    supervisor.wait_for("worker 2 is running")
    supervisor.send(signal.SIGTERM)
    supervisor.wait_for("stopping 2 workers (SIGTERM)")
    assert supervisor.end(second) == code
    assert f"killing 2 workers (a second {second.name})" in supervisor.text
    assert "was ended by SIGKILL" in supervisor.text
    assert "starting again" not in supervisor.text


def test_sighup_replaces_one_worker_after_the_other(crew: Crew, cli: Cli) -> None:
    supervisor = crew()
    before = [pid_of(supervisor, number) for number in (1, 2)]
    seen = len(events_of(supervisor))
    supervisor.send(signal.SIGHUP)
    supervisor.wait_for("all workers are restarted")
    steps = ["ended with code 0 (in order)", "is started", "is running"]
    assert events_of(supervisor)[seen:] == [
        *[f"worker {number} {step}" for number in (1, 2) for step in steps],
        "all workers are restarted",
    ]
    assert not {pid_of(supervisor, number) for number in (1, 2)} & set(before)
    until_served_by(supervisor, cli, {1, 2})
    assert supervisor.end(signal.SIGTERM) == 0


def test_what_will_not_start_is_refused_once_and_ends_all_with_its_code(shop: Path, cli: Cli, start: Start) -> None:
    publish(cli, "ann")
    (shop / "changed.py").write_text((shop / "shop.py").read_text().replace("partitions=4", "partitions=2"))
    refused = start("run", "changed:loyalty", "--workers", "3")
    assert refused.end() == 4
    assert refused.text.count("topic 'shop.orders' has partitions=4 in the log") == 1
    assert events_of(refused) == ["worker 1 is started", "worker 1 ended with code 4 (start refused) before it was running"]
    nowhere = start("run", "nowhere", "--workers", "3")
    assert nowhere.end() == 2
    assert nowhere.text.count("there is no module 'nowhere'") == 1


def test_a_restart_that_is_refused_leaves_the_others_at_work_until_it_succeeds(crew: Crew, cli: Cli, shop: Path) -> None:
    supervisor = crew()
    until_served_by(supervisor, cli, {1, 2})
    text = (shop / "shop.py").read_text()
    (shop / "shop.py").write_text(text.replace("partitions=4", "partitions=16"))
    supervisor.send(signal.SIGHUP)
    supervisor.wait_for("worker 1 ended with code 4 (start refused): starting again in 0.5 s")
    supervisor.wait_for("worker 1 ended with code 4 (start refused): starting again in 1 s")
    assert events_of(supervisor).count("worker 2 is started") == 1
    until_served_by(supervisor, cli, {2})
    (shop / "shop.py").write_text(text)
    supervisor.wait_for("all workers are restarted")
    assert supervisor.end(signal.SIGTERM) == 0


def test_workers_stop_in_order_when_their_supervisor_is_killed(crew: Crew) -> None:
    supervisor = crew()
    assert supervisor.end(signal.SIGKILL) == -signal.SIGKILL  # and nobody writes any more
    for number in (1, 2):
        assert f"WARNING worker {number}: the supervisor is gone: stopping" in supervisor.text


@pytest.mark.parametrize("flag", [("--log-url", "memory:"), ("--store-url", "sqlite::memory:")])
def test_what_each_process_would_have_for_itself_is_refused(shop: Path, cli: Cli, flag: tuple[str, str]) -> None:
    result = cli("run", "shop:billing", "--workers", "2", *flag)
    assert result.exit_code == 4
    assert "use --workers 1, or another --" in result.stderr


@pytest.mark.parametrize("line", [["--debug", "run"], ["run"]])
def test_workers_are_given_every_flag_but_those_of_the_supervisor(line: list[str]) -> None:
    root = get_command(app)
    given = ["--lease-s", "0.5", "--grace-s", "0", "--no-create-topics"]
    given += ["--new-types", "now", "--accept-new-store", "--log-level", "debug", "--no-tracing"]
    own = [
        "--log-url",
        "sqlite:a b.db",
        "--store-url=-",
        "--workers",
        "3",
        "--reload",
        "--metrics-port",
        "0",
        "--metrics-host",
        "::1",
    ]
    # The URLs are in the environment of the workers: they may hold a password, and `ps` shows flags.
    left = {"workers": 1, "reload": False, "metrics_port": None, "metrics_host": None, "log_url": None, "store_url": None}
    run = getattr(root, "commands")["run"]  # noqa: B009 typer has no public type for it
    parent = root.make_context("everlog", [*line, "x"])
    asked = run.make_context("run", [*given, *own, "--", "-a", "b:c"], parent=parent)
    words = _worker_command(asked)
    passed = run.make_context("run", words[words.index("run") + 1 :])
    assert passed.params == {**asked.params, **left}
    assert all(value is not None and value is not False for name, value in passed.params.items() if name not in left)
    assert ("--debug" in words) is (line[0] == "--debug")


# ---- terminals and service managers ----


@pytest.fixture
def terminal(crew: Crew, shop: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    """A supervisor that has a terminal of its own, the terminal's other end, and where its output goes."""
    master, slave = os.openpty()
    log = shop / "output.txt"
    command = f"exec {EVERLOG} run crew:crew --workers 2 < {os.ttyname(slave)} > {log} 2>&1"
    with subprocess.Popen(["/bin/sh", "-c", command], start_new_session=True) as process:
        os.close(slave)
        yield process, master, log
        process.kill()


def _until(log: Path, text: str) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not (log.exists() and text in log.read_text()):
        assert time.monotonic() < end_s, log.read_text()
        time.sleep(0.02)


def test_ctrl_c_stops_everything_in_order(terminal: tuple[subprocess.Popen[bytes], int, Path]) -> None:
    process, master, log = terminal
    _until(log, "worker 2 is running")
    os.write(master, b"\x03")
    assert process.wait(PATIENCE_S) == 0
    os.close(master)
    assert log.read_text().count("ended with code 0 (in order)") == 2


def test_a_terminal_that_is_closed_is_a_stop_and_no_restart(terminal: tuple[subprocess.Popen[bytes], int, Path]) -> None:
    process, master, log = terminal
    _until(log, "worker 2 is running")
    os.close(master)
    assert process.wait(PATIENCE_S) == 0
    assert log.read_text().count("ended with code 0 (in order)") == 2


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_service_manager_hears_when_all_is_running_and_when_it_stops(
    shop: Path, start: Start, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(str(shop / "notify"))
        line.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(shop / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "100000")
        service = start("run", "shop:billing", "shop:loyalty", "--workers", workers)
        heard = {line.recv(100) for _ in range(3)}
        while b"READY=1" not in heard:
            heard.add(line.recv(100))
        service.wait_for("loyalty is running" if workers == "1" else "worker 2 is running")
        service.send(signal.SIGTERM)
        while workers != "1" and b"STOPPING=1" not in heard:
            heard.add(line.recv(100))
        assert service.end() == 0
    assert heard == {b"WATCHDOG=1", b"READY=1"} | ({b"STOPPING=1"} if workers != "1" else set())
