"""`everlog parked`: what is held back, and what a person does about it, with and without a running worker."""

from __future__ import annotations

import io
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.cli.shop import Cli, Process, Start, on_terminal, publish

from everlog.cli.parked import listed_table


@pytest.fixture
def parked(shop: Path, cli: Cli, start: Start) -> Process:
    """A worker at work, after it has parked the key `poison` with three events in its queue."""
    publish(cli, "poison", "poison", "ada", "poison")
    worker = start("run", "shop:billing")
    worker.wait_for("is parked after 2 attempts")
    while listed(cli)[0]["events"] < 3:
        pass  # those behind it are on their way
    return worker


def listed(cli: Cli) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(cli("parked", "list", "billing", "--json").stdout)
    return found


def test_the_list_says_which_key_in_what_state_and_why(parked: Process, cli: Cli) -> None:
    (key,) = listed(cli)
    assert {name: key[name] for name in ("subscription", "key", "state", "next_attempt_at", "events", "attempts", "error")} == {
        "subscription": "billing",
        "key": "poison",
        "state": "parked",
        "next_attempt_at": None,
        "events": 3,
        "attempts": 2,
        "error": "RuntimeError: no money",
    }
    shown = cli("parked", "list", "billing").stdout.splitlines()
    assert shown[1].split() == ["billing", "poison", "parked", "3", "2", "RuntimeError:", "no", "money"]


def test_show_has_the_event_the_traceback_and_how_many_wait(parked: Process, cli: Cli) -> None:
    shown = cli("parked", "show", "billing", "poison").stdout
    for text in (
        "2 events of this key",
        "shop.order_placed/1",
        "RuntimeError: no money",
        '"customer": "poison"',
        'raise RuntimeError("no money")',
    ):
        assert text in shown
    (key,) = json.loads(cli("parked", "show", "billing", "poison", "--json").stdout)
    assert key["event"]["data"] == {"order": "1", "customer": "poison", "cents": 0}
    assert "Traceback" in key["traceback"]


def test_a_redrive_of_what_was_mended_is_handled_while_it_waits(parked: Process, shop: Path, cli: Cli) -> None:
    (shop / "mended").touch()
    result = cli("parked", "redrive", "billing", "poison", "--wait-s", "30")
    assert result.exit_code == 0
    assert "asked for 1 key" in result.stdout
    assert "handled: poison" in result.stdout
    assert listed(cli) == []
    assert cli("parked", "list", "billing").stdout == "app 'billing' holds nothing back\n"


def test_a_redrive_of_what_is_still_broken_says_so(parked: Process, cli: Cli) -> None:
    result = cli("parked", "redrive", "billing", "--all", "--wait-s", "30")
    assert result.exit_code == 0
    assert "failed again: poison: RuntimeError: no money" in result.stdout


def test_a_redrive_without_a_worker_stays_for_the_next_run(parked: Process, shop: Path, cli: Cli, start: Start) -> None:
    parked.end(signal.SIGTERM)
    (shop / "mended").touch()
    result = cli("parked", "redrive", "billing", "poison", "--wait-s", "0.05")
    assert "no worker has answered for 1 key within 0.05 s" in result.stdout
    start("run", "shop:billing").wait_for("is running")
    while listed(cli):
        pass
    assert cli("parked", "redrive", "billing", "--all").stdout == "app 'billing' has no parked key\n"


def test_a_skip_shows_what_would_be_lost_and_asks(parked: Process, cli: Cli) -> None:
    result = cli("parked", "skip", "billing", "poison", stdin="n\n")
    assert result.exit_code == 1
    assert '"order": "1"' in result.stdout
    assert result.stderr.endswith("everlog: nothing was changed\n")
    assert listed(cli)[0]["events"] == 3


def test_a_skip_gives_up_the_first_event_alone(parked: Process, cli: Cli) -> None:
    result = cli("parked", "skip", "billing", "poison", "--yes", "--wait-s", "30")
    assert (result.exit_code, result.stdout) == (0, "skipped; 2 events of the key go on\n")
    parked.wait_for("is parked after 2 attempts")  # the next one is as broken
    (key,) = json.loads(cli("parked", "show", "billing", "poison", "--json").stdout)
    assert (key["events"], key["event"]["data"]["order"]) == (2, "2")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["list", "biling"], 1, "app 'biling' has no store at sqlite:"),
        (["list", "billing", "--store-url", "sqlite::memory:"], 1, "app 'billing' has no store at sqlite::memory:"),
        (
            ["list", "loyalty", "--store-url", "sqlite:.everlog/billing.db"],
            1,
            "belongs to app 'billing', and this command names 'loyalty'",
        ),
        (["list", "billing", "--subscription", "bill"], 1, "there is no subscription 'bill' in the store: did you mean billing?"),
        (["show", "billing", "poisn"], 1, "did you mean poison?"),
        (["redrive", "billing"], 2, "expected a KEY or --all"),
        (["redrive", "billing", "poison", "--all"], 2, "expected a KEY or --all"),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_line(
    parked: Process, cli: Cli, arguments: list[str], code: int, message: str
) -> None:
    result = cli("parked", *arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_no_store_is_made_by_looking(shop: Path, cli: Cli) -> None:
    assert cli("parked", "list", "billing").exit_code == 1
    assert cli("retire", "billing", "billing", "--yes").exit_code == 1
    assert not (shop / ".everlog").exists()


@pytest.mark.parametrize("columns", [80, 120])
def test_a_key_is_a_line_on_the_terminal(parked: Process, columns: int) -> None:
    shown = on_terminal(["parked", "list", "billing"], columns=columns)
    assert len(shown) == 2
    assert shown[0].split() == ["subscription", "key", "state", "events", "attempts", "error"]
    assert max(map(len, shown)) <= columns


@pytest.mark.parametrize("key", ["c1", "0f8fad5b-d9cb-469f-a165-70867728950e", "k" * 200])
def test_the_list_fits_a_terminal_whatever_the_keys(key: str) -> None:
    rows = [("inventory", key, "blocked, next in 411 ms", "1,032", "12", "RuntimeError: " + "something went wrong " * 9)]
    console = Console(width=80, file=io.StringIO())
    with console.capture() as captured:
        console.print(listed_table(rows, 80))
    lines = captured.get().splitlines()
    assert lines[0].split() == ["subscription", "key", "state", "events", "attempts", "error"]
    assert max(map(len, lines)) <= 80
    assert "…" in lines[1]
    assert key == "".join([line[14:].split("  ")[0].strip() for line in lines[1:]])
