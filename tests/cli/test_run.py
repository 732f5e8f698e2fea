"""`everlog run`: what it prints, and how it ends."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tests.cli.shop import Cli, Start, publish

from everlog.cli.run import standing
from everlog.position import Offset, TopicPartition
from everlog.store import Progress, SubscriptionStatus


def test_it_prints_where_log_and_store_are_and_where_each_subscription_stands(shop: Path, start: Start) -> None:
    worker = start("run", "shop:billing", "shop:loyalty")
    worker.wait_for("is running")
    worker.wait_for("is running")
    assert worker.end(signal.SIGTERM) == 0
    assert f"  log      sqlite:{shop}/.everlog/log.db" in worker.text
    assert f"  store    sqlite:{shop}/.everlog/billing.db" in worker.text
    assert f"  store    sqlite:{shop}/.everlog/loyalty.db" in worker.text
    assert "  billing  shop.orders: from the first event on" in worker.text
    assert worker.lines[-1] == "stopped"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_one_signal_stops_it_with_0(shop: Path, start: Start, number: signal.Signals) -> None:
    worker = start("run", "shop:loyalty")
    worker.wait_for("loyalty is running")
    assert worker.end(number) == 0


def test_a_stop_while_its_module_is_imported_is_a_stop_in_order(shop: Path, start: Start) -> None:
    (shop / "slow_to_come.py").write_text("import threading\nprint('importing', flush=True)\nthreading.Event().wait()\n")
    worker = start("run", "slow_to_come")
    worker.wait_for("importing")
    assert worker.end(signal.SIGTERM) == 0


def test_a_second_sigterm_ends_it_at_once_with_143(shop: Path, cli: Cli, start: Start) -> None:
    publish(cli, "slow")
    worker = start("run", "shop:billing", "--grace-s", "3600", "--log-level", "debug")
    worker.wait_for("handling")
    worker.send(signal.SIGTERM)
    worker.send(signal.SIGTERM)
    while worker.popen.poll() is None:  # two signals that arrive as one need a third
        worker.send(signal.SIGTERM)
    assert worker.end() == 143


def test_a_handler_that_goes_on_is_left_behind_after_the_grace_period(shop: Path, cli: Cli, start: Start) -> None:
    publish(cli, "slow")
    worker = start("run", "shop:billing", "--grace-s", "0.1")
    worker.wait_for("handling")
    assert worker.end(signal.SIGTERM) == 0
    assert "the grace period of 0.1 s is over" in worker.text


def test_a_thread_that_never_returns_does_not_keep_the_process(shop: Path, cli: Cli, start: Start) -> None:
    publish(cli, "any")
    (shop / "stuck.py").write_text(
        "import asyncio, threading\n"
        "from everlog import App\n"
        "from shop import OrderPlaced\n"
        "stuck = App('stuck')\n"
        "@stuck.on(OrderPlaced)\n"
        "async def wait(order: OrderPlaced) -> None:\n"
        "    print('handling', flush=True)\n"
        "    await asyncio.to_thread(threading.Event().wait)\n"
    )
    worker = start("run", "stuck", "--grace-s", "0.1")
    worker.wait_for("handling")
    assert worker.end(signal.SIGTERM) == 0


def test_it_goes_on_where_it_stopped(shop: Path, cli: Cli, start: Start) -> None:
    for round_ in (1, 2):
        publish(cli, f"customer {round_}")
        worker = start("run", "shop:loyalty")
        worker.wait_for("rewarded")
        assert worker.end(signal.SIGTERM) == 0
        assert worker.text.count("rewarded") == 1


def test_flags_go_before_the_environment(shop: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLOG_LOG_URL", f"sqlite:{shop}/environment.db")
    monkeypatch.setenv("EVERLOG_STORE_URL", f"sqlite:{shop}/environment-{{app}}.db")
    worker = start("run", "shop:loyalty", "--log-url", f"sqlite:{shop}/flag.db")
    worker.wait_for("is running")
    assert worker.end(signal.SIGTERM) == 0
    assert f"  log      sqlite:{shop}/flag.db" in worker.text
    assert f"  store    sqlite:{shop}/environment-loyalty.db" in worker.text


def test_what_will_not_start_ends_with_4(shop: Path, start: Start) -> None:
    (shop / "changed.py").write_text((shop / "shop.py").read_text())
    worker = start("run", "shop:loyalty")
    worker.wait_for("is running")
    worker.end(signal.SIGTERM)
    (shop / "changed.py").write_text((shop / "shop.py").read_text().replace("partitions=4", "partitions=2"))
    refused = start("run", "changed:loyalty")
    assert refused.end() == 4
    assert refused.lines == [refused.lines[0]]
    assert "topic 'shop.orders' has partitions=4 in the log" in refused.text


def test_an_error_of_the_users_own_is_one_line_with_its_place(shop: Path, start: Start) -> None:
    (shop / "lifespan.py").write_text(
        "from contextlib import asynccontextmanager\n"
        "from everlog import App\n"
        "from shop import OrderPlaced\n"
        "@asynccontextmanager\n"
        "async def broken():\n"
        "    raise OSError('no mail server')\n"
        "    yield\n"
        "mail = App('mail', lifespan=broken)\n"
        "@mail.on(OrderPlaced)\n"
        "async def send(order: OrderPlaced) -> None: ...\n"
    )
    worker = start("run", "lifespan")
    assert worker.end() == 1
    assert worker.text == "everlog: OSError: no mail server (lifespan.py:6); everlog --debug … shows the traceback"


def _status(*through: int, blocked: int = 0, parked: int = 0, held: int = 0) -> SubscriptionStatus:
    progress = [Progress(TopicPartition("t", number), Offset(offset)) for number, offset in enumerate(through)]
    return SubscriptionStatus("s", 1, progress, blocked, parked, held)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (_status(-1, -1), "t: from the first event on"),
        (_status(7), "t: handled up to offset 7"),
        (_status(7, 1_234), "t: handled up to offset 7 … 1,234 in 2 partitions"),
        (_status(7, -1), "t: handled up to offset 7, in some of 2 partitions nothing yet"),
        (_status(-1, blocked=1, parked=2, held=9), "t: from the first event on\n1 key blocked, 2 parked, 9 events held"),
    ],
)
def test_where_a_subscription_stands_is_said_in_words(status: SubscriptionStatus, text: str) -> None:
    assert standing(status) == text
