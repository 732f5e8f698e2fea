"""`everlog topics`: what the log holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.shop import Cli, on_terminal, publish


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
    assert topic["newest"][:22] == times[-1][:22]  # to the millisecond, give or take one


def test_a_topic_without_events_has_no_times(shop: Path, cli: Cli) -> None:
    cli("publish", "shop", "shop.order_placed/1", stdin="")
    (topic,) = json.loads(cli("topics", "--json").stdout)
    assert (topic["events"], topic["oldest"], topic["newest"]) == (0, None, None)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_the_terminal(shop: Path, cli: Cli, columns: int) -> None:
    publish(cli, "ada")
    shown = on_terminal(["topics"], columns=columns)
    assert shown[0].split() == ["topic", "partitions", "key", "events", "oldest", "newest"]
    assert shown[1].startswith("shop.orders")
    assert shown[2] == "  shop.order_placed/1"
    assert max(map(len, shown)) <= columns
