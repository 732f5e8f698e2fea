"""`everlog run --metrics-port`: what it serves for one process and for several workers, read by the parser of Prometheus."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.cli.shop import PATIENCE_S, Cli, Process, Start, publish

Samples = Mapping[tuple[str, ...], float]


class Site:
    """What a process serves, once it has said where."""

    def __init__(self, process: Process) -> None:
        line = process.wait_for("metrics are served on")
        found = re.search(r"(http://\S+)/metrics", line)
        assert found is not None
        self.url = found[1]
        self.process = process

    def ask(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=PATIENCE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def samples(self) -> Samples:
        """Return the values by name and labels, labels in the order of their names, those of buckets left out."""
        families = text_string_to_metric_families(self.ask("/metrics")[1])
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in families
            for sample in family.samples
            if "le" not in sample.labels
        }

    def until(self, is_true: Callable[[Samples], bool]) -> Samples:
        """Ask until the numbers are what is waited for."""
        end_s = time.monotonic() + PATIENCE_S
        while not is_true(found := self.samples()):
            assert time.monotonic() < end_s, f"{found}\n{self.process.text}"
        return found

    def until_status(self, path: str, status: int) -> str:
        """Ask until the status is the one that is waited for, and return what is said with it."""
        end_s = time.monotonic() + PATIENCE_S
        while (answer := self.ask(path))[0] != status:
            assert time.monotonic() < end_s, f"{answer}\n{self.process.text}"
        return answer[1].strip()


BILLING = ("billing", "billing")


def test_one_process_shows_where_its_apps_stand_and_what_they_have_done(shop: Path, cli: Cli, start: Start) -> None:
    publish(cli, "ada", "grace", "poison", "poison")
    worker = start("run", "shop:billing", "shop:loyalty", "--metrics-port", "0")
    site = Site(worker)
    site.until_status("/readyz", 200)
    assert site.ask("/healthz") == (200, "ok\n")
    found = site.until(
        lambda found: found.get(("everlog_parked_keys", *BILLING)) == 1 and found["everlog_held_events", *BILLING] == 2
    )
    found = site.until(lambda found: found.get(("everlog_events_handled_total", "loyalty", "loyalty")) == 4)
    found = site.until(lambda found: found["everlog_events_handled_total", *BILLING] == 2)
    lags = ("everlog_subscription_lag_events", *BILLING), ("everlog_subscription_lag_events", "loyalty", "loyalty")
    found = site.until(lambda found: [found[lag] for lag in lags] == [2, 0])
    assert found["everlog_retries_total", *BILLING] == 1
    assert found["everlog_parked_total", *BILLING] == 1
    assert found["everlog_commit_seconds_count", "billing"] > 0
    assert found["everlog_sync_seconds_count", "", "log"] > 0
    assert worker.end(signal.SIGTERM) == 0


def test_workers_are_shown_as_one_and_what_one_has_counted_outlives_it(shop: Path, cli: Cli, start: Start) -> None:
    supervisor = start("run", "shop:loyalty", "--workers", "2", "--metrics-port", "0", "--lease-s", "1")
    site = Site(supervisor)
    assert site.ask("/healthz")[0] == 200
    for number in (1, 2):
        supervisor.wait_for(f"worker {number} is running")
    site.until_status("/readyz", 200)
    customers = [f"customer {number}" for number in range(40)]
    publish(cli, *customers)
    handled = ("everlog_events_handled_total", "loyalty", "loyalty")
    found = site.until(lambda found: found.get(handled) == 40)
    assert (found["everlog_worker_up", "1"], found["everlog_worker_up", "2"]) == (1, 1)
    site.until(lambda found: found["everlog_subscription_lag_events", "loyalty", "loyalty"] == 0)
    pids = re.findall(r"worker \d is started, pid (\d+)", supervisor.text)
    os.kill(int(pids[0]), signal.SIGKILL)
    assert site.until_status("/readyz", 503) == "worker 1 is not running"
    assert site.ask("/healthz")[0] == 200
    assert site.samples()[handled] == 40
    site.until_status("/readyz", 200)
    publish(cli, *customers)
    found = site.until(lambda found: found[handled] >= 80)
    assert found[handled] == 80
    assert found["everlog_worker_starts_total", "1"] == 2
    assert found["everlog_worker_starts_total", "2"] == 1
    assert supervisor.end(signal.SIGTERM) == 0


def test_a_worker_that_is_silent_is_not_ready(shop: Path, start: Start) -> None:
    supervisor = start("run", "shop:loyalty", "--workers", "1", "--reload", "--metrics-port", "0", "--lease-s", "2")
    site = Site(supervisor)
    supervisor.wait_for("worker 1 is running")
    site.until_status("/readyz", 200)
    (pid,) = re.findall(r"worker 1 is started, pid (\d+)", supervisor.text)
    os.kill(int(pid), signal.SIGSTOP)
    assert site.until_status("/readyz", 503) == "worker 1 gives no sign of life"
    os.kill(int(pid), signal.SIGCONT)
    site.until_status("/readyz", 200)
    assert supervisor.end(signal.SIGTERM) == 0


def test_workers_that_end_again_and_again_are_not_well(shop: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    (shop / "crash.py").write_text(
        "import os, threading\n"
        "from contextlib import asynccontextmanager\n"
        "from everlog import App\n"
        "from shop import OrderPlaced\n"
        "@asynccontextmanager\n"
        "async def broken():\n"
        "    os._exit(9)\n"
        "    yield\n"
        "crash = App('crash', lifespan=broken)\n"
        "@crash.on(OrderPlaced)\n"
        "async def handle(order: OrderPlaced) -> None: ...\n"
    )
    supervisor = start("run", "crash", "--workers", "2", "--metrics-port", "0")
    site = Site(supervisor)
    for _ in range(5):
        supervisor.wait_for("worker 1 ended with code 9")
    assert site.until_status("/healthz", 503) == "worker 1 has ended 5 times in a row"
    supervisor.end(signal.SIGTERM)


@pytest.mark.parametrize("more", [[], ["--workers", "2"]])
def test_a_port_that_is_taken_is_refused_with_4_before_anything_starts(shop: Path, start: Start, more: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = start("run", "shop:loyalty", "--metrics-port", str(port), *more)
        assert refused.end() == 4
    assert refused.text == (
        f"everlog: metrics cannot be served on 127.0.0.1:{port} (address already in use): see what else listens there, or give another "
        f"--metrics-port or --metrics-host; 0 is a port that is free"
    )
    assert not (shop / ".everlog").exists()


@pytest.mark.parametrize("more", [[], ["--workers", "2"]])
def test_the_environment_says_it_too_and_a_flag_goes_before_it(
    shop: Path, start: Start, more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERLOG_METRICS_PORT", "0")
    monkeypatch.setenv("EVERLOG_METRICS_HOST", "no.such.host.invalid")
    worker = start("run", "shop:loyalty", "--metrics-host", "127.0.0.1", *more)
    site = Site(worker)
    assert urlsplit(site.url).hostname == "127.0.0.1"
    site.until_status("/readyz", 200)
    assert worker.end(signal.SIGTERM) == 0
    assert worker.text.count("metrics are served on") == 1


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_what_is_no_port_is_wrong_usage(shop: Path, cli: Cli, port: str) -> None:
    assert cli("run", "shop:loyalty", f"--metrics-port={port}").exit_code == 2


def test_it_is_answered_while_a_handler_keeps_the_event_loop(shop: Path, cli: Cli, start: Start) -> None:
    (shop / "rude.py").write_text(
        "import pathlib, time\n"
        "from everlog import App\n"
        "from shop import OrderPlaced\n"
        "rude = App('rude')\n"
        "@rude.on(OrderPlaced)\n"
        "async def hold(order: OrderPlaced) -> None:\n"
        "    print('holding', flush=True)\n"
        "    while not pathlib.Path('enough').exists():\n"
        "        time.sleep(0.01)\n"
    )
    publish(cli, "ada")
    worker = start("run", "rude", "--metrics-port", "0")
    site = Site(worker)
    worker.wait_for("holding")
    assert site.ask("/healthz") == (200, "ok\n")
    assert site.ask("/metrics")[0] == 200
    (shop / "enough").touch()
    assert worker.end(signal.SIGTERM) == 0


def test_status_and_metrics_agree_on_the_lag(shop: Path, cli: Cli, start: Start) -> None:
    publish(cli, "poison", "poison", "ada")
    worker = start("run", "shop:billing", "--metrics-port", "0")
    site = Site(worker)
    site.until(lambda found: found.get(("everlog_parked_keys", *BILLING)) == 1)
    found = site.until(lambda found: found["everlog_subscription_lag_events", *BILLING] == 2)
    assert worker.end(signal.SIGTERM) == 0
    (shown,) = json.loads(cli("status", "--json").stdout)["subscriptions"]
    assert shown["lag"] == found["everlog_subscription_lag_events", *BILLING]
    assert shown["parked_keys"] == found["everlog_parked_keys", *BILLING]
