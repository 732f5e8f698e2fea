"""`everlog topics`: what the log holds and for how long, and changing that."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.cli.shop import Cli, Start, on_terminal, publish

from everlog.clock import SystemClock
from everlog.errors import TopicMismatch
from everlog.log import TopicSpec
from everlog.logs.sqlite import open_log


def ensured(shop: Path, spec: TopicSpec) -> None:
    """Have a topic in the log."""

    async def ensure() -> None:
        log = await open_log(f"sqlite:{shop}/.everlog/log.db", clock=SystemClock())
        try:
            await log.ensure_topic(spec)
        finally:
            await log.aclose()

    asyncio.run(ensure())


def shown(cli: Cli) -> dict[str, Any]:
    """Return what is said of the only topic."""
    (topic,) = json.loads(cli("topics", "--json").stdout)
    return dict(topic)


def test_json_has_counts_types_and_the_times_of_the_oldest_and_the_newest_event(shop: Path, cli: Cli) -> None:
    publish(cli, "ada")
    publish(cli, "bob", "cy")
    (topic,) = json.loads(cli("topics", "--json").stdout)
    assert {name: topic[name] for name in ("name", "partitions", "key", "types", "events")} == {
        "name": "shop.orders",
        "partitions": 4,
        "key": "customer",
        "types": ["shop.order_placed/1"],
        "events": 3,
    }
    events = [json.loads(line) for line in cli("tail", "--from", "beginning", "--json", "--limit", "3").stdout.splitlines()]
    times = sorted(event["logged_at"] for event in events)
    assert topic["oldest"] == times[0]
    shown, logged = (datetime.fromisoformat(text) for text in (topic["newest"], times[-1]))
    assert abs(shown - logged) <= timedelta(milliseconds=2)


def test_a_topic_without_events_has_no_times(shop: Path, cli: Cli) -> None:
    cli("publish", "shop", "shop.order_placed/1", stdin="")
    (topic,) = json.loads(cli("topics", "--json").stdout)
    assert (topic["events"], topic["oldest"], topic["newest"]) == (0, None, None)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_the_terminal(shop: Path, cli: Cli, columns: int) -> None:
    publish(cli, "ada")
    lines = on_terminal(["topics"], columns=columns)
    assert lines[0].split() == ["topic", "partitions", "key", "events", "oldest", "newest"]
    assert lines[1].startswith("shop.orders")
    assert lines[2] == "  shop.order_placed/1"
    assert max(map(len, lines)) <= columns


# ---- limits ----


def test_limits_are_set_as_people_write_them_and_shown(shop: Path, cli: Cli) -> None:
    publish(cli, "ada")
    assert (shown(cli)["keep_s"], shown(cli)["keep_bytes"]) == (None, None)
    result = cli("topics", "set", "shop.orders", "--keep-s", "7d", "--keep-bytes", "500MB", "--yes")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[0] == (
        "topic shop.orders keeps everything, and would keep 7 d or 500 MB of each partition; the rest is deleted for ever"
    )
    assert result.stdout.splitlines()[1] == "shop.orders keeps 7 d or 500 MB of each partition; before: everything"
    assert "keep_s=604800.0, keep_bytes=500000000" in result.stdout
    assert (shown(cli)["keep_s"], shown(cli)["keep_bytes"]) == (604_800.0, 500_000_000)
    assert "  keeps 7 d or 500 MB of each partition" in [line.rstrip() for line in cli("topics").stdout.splitlines()]
    assert cli("topics", "set", "shop.orders", "--keep-bytes", "none").exit_code == 0
    assert (shown(cli)["keep_s"], shown(cli)["keep_bytes"]) == (604_800.0, None)
    assert cli("topics", "set", "shop.orders", "--keep-s", "none").exit_code == 0
    assert (shown(cli)["keep_s"], shown(cli)["keep_bytes"]) == (None, None)


def test_keeping_less_is_asked_for_and_keeping_more_is_not(shop: Path, cli: Cli) -> None:
    publish(cli, "ada")
    week = ["topics", "set", "shop.orders", "--keep-s", "7d"]
    asked = on_terminal(week, columns=120, typed="n\n")
    assert any("topic shop.orders keeps everything, and would keep 7 d; the rest is deleted for ever" in line for line in asked)
    refused = cli(*week, stdin="y\n")
    assert (refused.exit_code, "--yes" in refused.stderr) == (1, True)
    assert shown(cli)["keep_s"] is None
    on_terminal(week, columns=120, typed="y\n")
    assert shown(cli)["keep_s"] == 7 * 86_400
    assert cli("topics", "set", "shop.orders", "--keep-s", "8d").exit_code == 0
    assert cli("topics", "set", "shop.orders", "--keep-s", "6d").exit_code == 1
    assert shown(cli)["keep_s"] == 8 * 86_400


def test_what_the_code_declares_must_be_what_was_set(shop: Path, cli: Cli) -> None:
    publish(cli, "ada")
    cli("topics", "set", "shop.orders", "--keep-s", "7d", "--yes")
    refused = cli("publish", "shop", "shop.order_placed/1", "--data", '{"order": "2", "customer": "bob"}')
    assert refused.exit_code == 4
    assert "`everlog topics set shop.orders --keep-s none`" in refused.stderr
    with pytest.raises(TopicMismatch):
        ensured(shop, TopicSpec("shop.orders", key="customer", partitions=4))
    ensured(shop, TopicSpec("shop.orders", key="customer", partitions=4, keep_s=604_800.0))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["shop.orders"], 2, "expected --keep-s, --keep-bytes or both"),
        (["shop.orders", "--keep-s", "7x"], 2, "expected an age like 7d, 12h, 30min or 90s, or none, found '7x'"),
        (["shop.orders", "--keep-bytes", "0"], 2, "expected keep_bytes above 0"),
        (["shop.ordrs", "--keep-s", "7d"], 1, "did you mean shop.orders?"),
        (["shop.orders", "--partitions", "16"], 1, "the partitions of 'shop.orders' stay as they are"),
        (["everlog.progress", "--keep-s", "7d"], 1, "is a topic of Everlog itself"),
    ],
)
def test_what_cannot_be_set_is_refused_in_one_line(shop: Path, cli: Cli, arguments: list[str], code: int, message: str) -> None:
    publish(cli, "ada")
    ensured(shop, TopicSpec("everlog.progress", key="name", partitions=1))
    result = cli("topics", "set", *arguments, "--yes")
    assert result.exit_code == code
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_options_before_the_name_of_a_command_are_refused_and_not_passed_over(shop: Path, cli: Cli) -> None:
    publish(cli, "ada")
    for options in (["--log-url", "sqlite:other.db"], ["--json"]):
        result = cli("topics", *options, "set", "shop.orders", "--keep-s", "7d", "--yes")
        assert result.exit_code == 2
        assert "give the options of `topics set` behind its name" in result.stderr


def test_no_log_is_made_by_setting_or_trimming(shop: Path, cli: Cli) -> None:
    for arguments in (["set", "shop.orders", "--keep-s", "7d"], ["trim"]):
        assert "there is no log" in cli("topics", *arguments).stderr
    assert not (shop / ".everlog").exists()


def test_trimming_deletes_at_once_and_what_is_gone_is_shown(shop: Path, cli: Cli) -> None:
    publish(cli, "ada", "ada", "ada")
    assert cli("topics", "trim").stdout == "deleted 0 events\n"
    assert shown(cli)["gone_through"] is None
    newest = shown(cli)["newest"]
    cli("topics", "set", "shop.orders", "--keep-s", "0.000001", "--yes")
    assert cli("topics", "trim").stdout == "deleted 3 events\n"
    topic = shown(cli)
    assert (topic["events"], topic["oldest"], topic["newest"]) == (0, None, None)
    assert topic["gone_through"][:22] == newest[:22]
    assert any("deleted up to" in line for line in cli("topics").stdout.splitlines())
    assert cli("verify").exit_code == 0


def test_what_a_service_has_not_handled_is_named_before_it_is_deleted(shop: Path, cli: Cli, start: Start) -> None:
    publish(cli, "ada")
    worker = start("run", "shop:billing")
    worker.wait_for("is running")
    while '"lag": 0' not in cli("status", "--json").stdout:
        time.sleep(0.1)
    assert worker.end(signal.SIGTERM) == 0
    publish(cli, "bob", "cyd")
    unasked = cli("topics", "set", "shop.orders", "--keep-s", "0.001")
    assert (unasked.exit_code, "say --yes" in unasked.stderr) == (1, True)
    said = "billing/billing has not handled 2 events: what is deleted before that is gone for it"
    assert said in unasked.stdout
    assert cli("topics", "set", "shop.orders", "--keep-s", "0.001", "--yes").exit_code == 0
    trimmed = cli("topics", "trim")
    assert (said in trimmed.stdout, "deleted 3 events" in trimmed.stdout) == (True, True), trimmed.stdout
