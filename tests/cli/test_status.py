"""`everlog status`: how far each subscription is."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from tests.cli.shop import Cli, Start, on_terminal, publish

from everlog.clock import SystemClock
from everlog.store import Room


def test_a_log_that_nobody_has_worked_on_has_no_subscriptions(shop: Path, cli: Cli) -> None:
    publish(cli, "ada")
    assert cli("status").stdout.startswith("no app has reported to sqlite:")
    asked = cli("status", "--max-lag", "100")
    assert (asked.exit_code, "no app has reported" in asked.stderr) == (3, True), (
        "who waits for a lag must not be told that there is none"
    )
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


@pytest.mark.parametrize(("ahead_s", "is_ahead"), [(-3_600, False), (50, False), (70, True), (3_600, True)])
def test_a_log_whose_time_is_more_than_a_minute_ahead_is_said(
    shop: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, ahead_s: int, is_ahead: bool
) -> None:
    now_us = SystemClock.wall_us

    def later(clock: SystemClock) -> int:
        return now_us(clock) + ahead_s * 1_000_000

    with monkeypatch.context() as patch:
        patch.setattr(SystemClock, "wall_us", later)
        publish(cli, "ada")
    result = cli("status", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["is_ahead"] is is_ahead
    assert ("more than a minute ahead" in result.stderr) is is_ahead
    publish(cli, "bob")  # at that time too, since the log's time does not go back
    assert ("more than a minute ahead" in cli("status").stderr) is is_ahead


def test_a_paused_subscription_is_said_with_its_reason(shop: Path, cli: Cli, start: Start) -> None:
    publish(cli, "down1", "down2", "down3", "down4")
    worker = start("run", "shop:billing")
    worker.wait_for("paused, and nothing is parked meanwhile")
    while not (found := json.loads(cli("status", "--json").stdout)["subscriptions"]) or found[0]["paused"] is None:
        pass  # it reports about once a second
    assert found[0]["paused"].endswith("all failed with ConnectionError (1 process)")
    result = cli("status")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("billing is paused, and tries one event now and then: the last ")
    assert cli("status", "--max-lag", "0").exit_code == 3
    other = start("run", "shop:billing")
    other.wait_for("  billing is paused, and tries one event now and then: the last ")
    (shop / "mended").touch()
    worker.wait_for("goes on")
    other.end(signal.SIGTERM)
    while json.loads(cli("status", "--json").stdout)["subscriptions"][0]["paused"] is not None:
        pass
    assert "paused" not in cli("status").stdout


def test_a_subscription_that_holds_as_much_as_it_may_is_said(
    shop: Path, cli: Cli, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(cli, "poison", "poison")
    worker = start("run", "shop:billing")
    worker.wait_for("is parked after 2 attempts")
    while not (found := json.loads(cli("status", "--json").stdout)["subscriptions"]) or found[0]["held_records"] < 2:
        pass
    worker.end(signal.SIGTERM)
    assert found[0]["is_full"] is False
    assert found[0]["held_bytes"] > 0
    for room in (Room(2, 1 << 30), Room(100, found[0]["held_bytes"])):
        monkeypatch.setattr("everlog.cli.holding.ROOM", room)
        assert json.loads(cli("status", "--json").stdout)["subscriptions"][0]["is_full"] is True
        assert f"billing holds 2 events ({found[0]['held_bytes']} bytes), and may hold" in cli("status").stdout
