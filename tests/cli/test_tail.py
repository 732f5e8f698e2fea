"""`everlog tail`: what it shows, from where, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from tests.cli.shop import EVERLOG, PATIENCE_S, Cli, Start, on_terminal, publish


def tailed(cli: Cli, *arguments: str) -> list[str]:
    """Return the orders that a tail from the beginning shows."""
    result = cli("tail", "--from", "beginning", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return [json.loads(line)["data"]["order"] for line in result.stdout.splitlines()]


def test_it_shows_events_without_their_contracts(shop: Path, cli: Cli) -> None:
    publish(cli, "ada")
    (shop / "shop.py").unlink()
    line = cli("tail", "--from", "beginning", "--limit", "1").stdout
    assert "shop.orders/" in line
    assert line.endswith('@0 shop.order_placed/1 ada {"order":"1","customer":"ada","cents":0}\n')


def test_it_goes_on_behind_a_token_without_gap_or_double(shop: Path, cli: Cli) -> None:
    publish(cli, *[f"customer {number}" for number in range(20)])
    first = [json.loads(line) for line in cli("tail", "--from", "beginning", "--json", "--limit", "7").stdout.splitlines()]
    rest = [
        json.loads(line) for line in cli("tail", "--after", first[-1]["position"], "--json", "--limit", "13").stdout.splitlines()
    ]
    assert sorted(int(event["data"]["order"]) for event in [*first, *rest]) == list(range(1, 21))


def test_key_type_and_topic_choose(shop: Path, cli: Cli) -> None:
    publish(cli, "ada", "bob", "ada")
    cli("publish", "shop", "shop.note_taken/1", "--data", '{"text": "x"}')
    assert tailed(cli, "--key", "ada", "--limit", "2") == ["1", "3"]
    assert sorted(tailed(cli, "--type", "shop.order_placed/1", "--limit", "3")) == ["1", "2", "3"]
    assert sorted(tailed(cli, "--topic", "shop.orders", "--limit", "3")) == ["1", "2", "3"]
    assert sorted(tailed(cli, "shop", "--type", "shop.order_placed/1", "--limit", "3")) == ["1", "2", "3"]


def test_a_time_is_where_it_begins(shop: Path, cli: Cli) -> None:
    publish(cli, "ada")
    last = json.loads(cli("tail", "--from", "beginning", "--json", "--limit", "1").stdout)["logged_at"]
    publish(cli, "bob")
    events = [json.loads(line) for line in cli("tail", "--from", last, "--json", "--limit", "2").stdout.splitlines()]
    assert [event["subject"] for event in events] == ["ada", "bob"]
    assert [json.loads(cli("tail", "--from", "2001-01-01", "--json", "--limit", "1").stdout)["subject"]] == ["ada"]


def test_events_come_as_they_are_stored_also_those_of_a_new_topic(shop: Path, cli: Cli, start: Start) -> None:
    publish(cli, "ada")
    follower = start("tail", "--from", "beginning", "--json")
    follower.wait_for("ada")
    publish(cli, "bob")
    follower.wait_for("bob")
    cli("publish", "shop", "shop.note_taken/1", "--data", '{"text": "a new topic"}')
    follower.wait_for("a new topic")
    assert follower.end(signal.SIGINT) == 130
    assert "Traceback" not in follower.text


def test_it_begins_with_what_comes_from_now_on(shop: Path, cli: Cli, start: Start) -> None:
    publish(cli, "ada")
    follower = start("tail", "--json")
    while follower.popen.poll() is None and not follower.lines:
        publish(cli, "bob")  # until the follower has started
        try:
            follower.lines.append(follower.next(timeout_s=0.2))
        except TimeoutError:
            continue
    assert "bob" in follower.lines[0]
    assert follower.end(signal.SIGINT) == 130
    assert "ada" not in follower.text


@pytest.mark.parametrize("arguments", [["--json"], []])
def test_it_ends_when_who_reads_it_goes_without_waiting_for_an_event(shop: Path, cli: Cli, arguments: list[str]) -> None:
    publish(cli, "ada")
    process = subprocess.Popen(
        [EVERLOG, "tail", "--from", "beginning", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    os.read(process.stdout.fileno(), 1)
    process.stdout.close()
    assert process.wait(PATIENCE_S) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_token_before_what_is_kept_is_refused_with_the_oldest_that_is(shop: Path, cli: Cli) -> None:
    publish(cli, *["ada"] * 3)
    first = json.loads(cli("tail", "--from", "beginning", "--json", "--limit", "1").stdout)["position"]
    cli("topics", "set", "shop.orders", "--keep-s", "0.000001", "--yes")
    assert cli("topics", "trim").stdout == "deleted 3 events\n"
    cli("topics", "set", "shop.orders", "--keep-s", "none")
    publish(cli, "ada")
    refused = cli("tail", "--after", first, "--limit", "1")
    assert refused.exit_code == 1
    assert "retention has deleted everything up to offset 2: the oldest position that is kept is " in refused.stderr
    oldest = refused.stderr.split("is kept is ")[1].split(";")[0]
    found = cli("tail", "--after", oldest, "--json", "--limit", "1")
    assert json.loads(found.stdout)["offset"] == 3
    assert json.loads(cli("tail", "--from", "beginning", "--json", "--limit", "1").stdout)["offset"] == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["--type", "shop.order_plced/1"],
            1,
            "there is no event type 'shop.order_plced/1' in the log: did you mean shop.order_placed/1?",
        ),
        (["shop", "--type", "shop.order_plced/1"], 1, "in shop: did you mean shop.order_placed/1?"),
        (["--topic", "shop.ordrs"], 1, "did you mean shop.orders?"),
        (["--from", "yesterday"], 2, "expected beginning, now or a time"),
        (["--after", "nonsense"], 1, "expected a position"),
        (["--limit", "0"], 2, "--limit"),
    ],
)
def test_what_it_cannot_show_is_refused_in_one_line(shop: Path, cli: Cli, arguments: list[str], code: int, message: str) -> None:
    publish(cli, "ada")
    result = cli("tail", *arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_no_log_is_made_by_looking(shop: Path, cli: Cli) -> None:
    for command in ("tail", "topics", "status", "verify"):
        result = cli(command)
        assert result.exit_code == 1
        assert "there is no log at sqlite:" in result.stderr
    assert not (shop / ".everlog").exists()


@pytest.mark.parametrize("columns", [80, 120])
def test_a_line_fits_the_terminal(shop: Path, cli: Cli, columns: int) -> None:
    publish(cli, "a customer with quite a long name that goes on and on, and on")
    (line,) = on_terminal(["tail", "--from", "beginning", "--limit", "1"], columns=columns)
    assert len(line) == columns
    assert line.endswith("…")
