"""`everlog status`: how far each subscription is."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from tests.cli.shop import Cli, Start, on_terminal, publish


def test_a_log_that_nobody_has_worked_on_has_no_subscriptions(shop: Path, cli: Cli) -> None:
    publish(cli, "ada")
    assert cli("status").stdout.startswith("no app has reported to sqlite:")
    assert json.loads(cli("status", "--json").stdout)["subscriptions"] == []


def test_a_stopped_subscription_lags_by_what_came_since(shop: Path, cli: Cli, start: Start) -> None:
    publish(cli, "ada", "bob")
    worker = start("run", "shop:loyalty")
    worker.wait_for("rewarded")
    worker.wait_for("rewarded")
    worker.end(signal.SIGTERM)
    (done,) = json.loads(cli("status", "--json").stdout)["subscriptions"]
    assert (done["name"], done["lag"], done["age_s"], done["outbox"]) == ("loyalty/loyalty", 0, None, 0)
    assert cli("status", "--max-lag", "0").exit_code == 0
    publish(cli, "cy", "dan", "eve")
    (late,) = json.loads(cli("status", "--json").stdout)["subscriptions"]
    assert late["lag"] == 3
    assert late["age_s"] >= 0
    assert cli("status", "--max-lag", "3").exit_code == 0
    refused = cli("status", "--max-lag", "2")
    assert refused.exit_code == 3
    assert refused.stderr == "everlog: more than 2 behind: loyalty (3)\n"
    assert refused.stdout.splitlines()[1].split()[:2] == ["loyalty", "3"]


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_the_terminal(shop: Path, cli: Cli, start: Start, columns: int) -> None:
    publish(cli, "ada")
    worker = start("run", "shop:loyalty")
    worker.wait_for("rewarded")
    worker.end(signal.SIGTERM)
    shown = on_terminal(["status"], columns=columns)
    assert shown[0].split() == ["subscription", "lag", "age", "blocked", "parked", "held", "outbox", "reported"]
    assert shown[1].split()[:7] == ["loyalty", "0", "–", "0", "0", "0", "0"]
    assert max(map(len, shown)) <= columns
