"""`everlog parked`: what is held back, and what a person does about it, with and without a running worker."""

from __future__ import annotations

import io
import json
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console
from tests.cli.held import PLACED, RETURNED, STEERING, behind, failed, leave_behind, record, requests
from tests.cli.shop import Cli, Process, Start, on_terminal, publish

from everlog.cli.holding import KeyList
from everlog.cli.terminal import printable
from everlog.store import Cause, Held, ParkedKey


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
    assert key.pop("id") > 0
    assert key.pop("held_at").endswith("Z")
    assert key == {
        "subscription": "billing",
        "key": "poison",
        "state": "parked",
        "next_attempt_at": None,
        "events": 3,
        "behind": 2,
        "type": "shop.order_placed/1",
        "attempts": 2,
        "cause": "failed",
        "error": "RuntimeError: no money",
    }
    heading, line = cli("parked", "list", "billing").stdout.splitlines()
    assert heading.split() == ["key", "state", "behind", "attempts", "held"]
    assert line.split()[:4] == ["poison", "parked", "2", "2"]
    assert line.endswith("ago  shop.order_placed/1 failed: RuntimeError: no money")


def test_show_has_the_event_the_traceback_and_what_waits_behind_it(parked: Process, cli: Cli) -> None:
    shown = cli("parked", "show", "billing", "poison").stdout
    for text in (
        "2 events of this key",
        "shop.order_placed/1",
        "failed: RuntimeError: no money",
        '"customer": "poison"',
        'raise RuntimeError("no money")',
        "behind it, in this order",
    ):
        assert text in shown
    (key,) = json.loads(cli("parked", "show", "billing", "poison", "--json").stdout)
    assert key["event"]["data"] == {"order": "1", "customer": "poison", "cents": 0}
    assert [event["data"]["order"] for event in key["events_behind"]] == ["2", "4"]
    assert "Traceback" in key["traceback"]
    assert cli("parked", "show", "billing", "poison", "--behind", "1").stdout.endswith("and 1 more\n")
    assert "in this order" not in cli("parked", "show", "billing", "poison", "--behind", "0").stdout


def test_a_redrive_of_what_was_mended_is_handled_while_it_waits(parked: Process, shop: Path, cli: Cli) -> None:
    (shop / "mended").touch()
    result = cli("parked", "redrive", "billing", "poison", "--wait-s", "30")
    assert (result.exit_code, result.stdout) == (0, "handled: poison\n")
    assert listed(cli) == []
    assert cli("parked", "list", "billing").stdout == "app 'billing' holds nothing back\n"


@pytest.mark.parametrize("which", [["--all"], ["--type", "shop.order_placed/1"], ["--error", "no money"], ["poison"]])
def test_a_redrive_of_what_is_still_broken_says_so_and_ends(parked: Process, cli: Cli, which: list[str]) -> None:
    result = cli("parked", "redrive", "billing", *which)
    assert result.exit_code == 5
    assert result.stdout == "failed again: 1 key\n  poison: failed: RuntimeError: no money\n"


def test_the_bar_follows_the_queue_on_a_terminal(parked: Process, shop: Path, cli: Cli) -> None:
    (shop / "mended").touch()
    shown = on_terminal(["parked", "redrive", "billing", "--all"], columns=80)
    assert shown[-1].endswith("handled: poison")
    assert any("redriving" in line and "1 of 1 key, 0 events left" in line for line in shown)


def test_a_redrive_without_a_worker_stays_for_the_next_run(parked: Process, shop: Path, cli: Cli, start: Start) -> None:
    parked.end(signal.SIGTERM)
    (shop / "mended").touch()
    result = cli("parked", "redrive", "billing", "poison")
    assert result.exit_code == 0
    assert result.stdout == (
        "no worker of app 'billing' is running now: the request for 1 key is filed, and carried out when one runs, "
        "also one that is just being started again\n"
    )
    start("run", "shop:billing").wait_for("is running")
    while listed(cli):
        pass
    assert cli("parked", "redrive", "billing", "--all").stdout == "app 'billing' has no parked key\n"


def test_ctrl_c_ends_the_waiting_and_not_the_work(parked: Process, shop: Path, start: Start) -> None:
    (shop / "mended").write_text("slowly")
    waiting = start("parked", "redrive", "billing", "poison")
    parked.wait_for("handling")
    assert waiting.end(signal.SIGINT) == 130
    assert waiting.text == "not through yet: poison; the workers go on with it"


def test_who_does_not_wait_is_told_that_it_is_filed(shop: Path, cli: Cli) -> None:
    leave_behind([failed(1, "ada")])
    result = cli("parked", "redrive", "billing", "ada", "--no-wait")
    assert (result.exit_code, requests()) == (0, 1)
    assert "is filed" in result.stdout


@pytest.mark.parametrize("action", [["redrive"], ["skip", "--yes"]])
def test_who_waits_for_so_long_learns_from_the_code_that_it_was_not_long_enough(shop: Path, cli: Cli, action: list[str]) -> None:
    leave_behind([failed(1, "ada"), failed(2, "bob")])
    result = cli("parked", *action, "billing", "ada", "--wait-s", "5")
    assert (result.exit_code, requests()) == (6, 1)
    assert "no worker of app 'billing' is running now" in result.stdout
    assert cli("parked", *action, "billing", "ada", "--no-wait").exit_code == 0, "who does not wait does not ask"


def test_a_queue_that_is_still_being_tried_at_the_end_of_the_wait_is_not_done(parked: Process, shop: Path, cli: Cli) -> None:
    (shop / "mended").write_text("slowly")
    result = cli("parked", "redrive", "billing", "poison", "--wait-s", "0.5")
    assert result.exit_code == 6
    assert "not through yet: poison" in result.stdout or "no worker has taken 1 key within 0.5 s" in result.stdout


def test_a_redrive_says_that_its_subscription_is_paused(shop: Path, cli: Cli, start: Start) -> None:
    publish(cli, "down1", "down2", "down3", "down4")
    worker = start("run", "shop:billing")
    worker.wait_for("paused, and nothing is parked meanwhile")
    while not (held := listed(cli)):
        pass  # what fails first is on its way
    result = cli("parked", "redrive", "billing", held[0]["key"], "--wait-s", "0.5")
    assert result.exit_code == 6
    assert f"not through yet: {held[0]['key']}" in result.stdout or "no worker has taken 1 key within 0.5 s" in result.stdout
    assert "billing is paused, and tries one event now and then: the last " in result.stdout
    assert result.stderr.startswith("everlog: billing is paused, ")


def test_a_skip_shows_what_would_be_lost_and_asks(parked: Process, cli: Cli) -> None:
    shown = on_terminal(["parked", "skip", "billing", "poison"], columns=120, typed="n\n")
    assert any('"order": "1"' in line for line in shown)
    assert any("will never handle this event. Skip it?" in line for line in shown)
    assert shown[-1].endswith("everlog: nothing was changed")
    assert listed(cli)[0]["events"] == 3


def test_a_skip_without_a_terminal_and_without_yes_is_refused(parked: Process, cli: Cli) -> None:
    result = cli("parked", "skip", "billing", "poison", stdin="y\n")
    assert result.exit_code == 1
    assert "say --yes" in result.stderr
    assert listed(cli)[0]["events"] == 3


def test_a_skip_gives_up_the_first_event_alone(parked: Process, cli: Cli) -> None:
    result = cli("parked", "skip", "billing", "poison", "--yes", "--wait-s", "30")
    assert (result.exit_code, result.stdout) == (0, "skipped 1 event; 2 events behind go on\n")
    parked.wait_for("is parked after 2 attempts")  # the next one is as broken
    (key,) = json.loads(cli("parked", "show", "billing", "poison", "--json").stdout)
    assert (key["events"], key["event"]["data"]["order"]) == (2, "2")
    (skipped,) = json.loads(cli("skipped", "list", "billing", "--json").stdout)
    assert (skipped["key"], skipped["event"]["data"]["order"]) == ("poison", "1")


FOUR = [
    failed(1, "ada"),
    behind(2, "ada"),
    failed(3, "bob", error="KeyError: 'x'", type_name=RETURNED),
    failed(4, "cy", error="ValueError: no", cause=Cause.UNREADABLE),
    failed(5, STEERING, error="KeyError: 'x' \x1b[31m"),
]


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        ([], ["ada", "bob", "cy", STEERING]),
        (["--type", RETURNED], ["bob"]),
        (["--error", "KeyError"], ["bob", STEERING]),
        (["--error", "KeyError", "--type", PLACED], [STEERING]),
        (["--error", "unheard of"], []),
        (["--key", "cy"], ["cy"]),
        (["--key", STEERING], [STEERING]),
        (["--key", printable(STEERING)], [STEERING]),
        (["--key", "cy", "--type", RETURNED], []),
        (["--subscription", "billing", "--limit", "2"], ["ada", "bob"]),
        (["--after", "3", "--limit", "1"], ["cy"]),
    ],
)
def test_the_list_has_what_was_asked_for(shop: Path, cli: Cli, arguments: list[str], keys: list[str]) -> None:
    leave_behind(FOUR)
    assert [one["key"] for one in json.loads(cli("parked", "list", "billing", *arguments, "--json").stdout)] == keys
    shown = cli("parked", "list", "billing", *arguments).stdout.splitlines()
    assert [line.split("  ")[0] for line in shown[1:] if "--after" not in line] == [printable(key) for key in keys]


def test_a_list_that_ends_early_says_how_to_go_on(shop: Path, cli: Cli) -> None:
    leave_behind(FOUR)
    shown = cli("parked", "list", "billing", "--limit", "2").stdout.splitlines()
    assert shown[-1] == "and more: the next ones with --after 3, or say --limit"
    assert "more" not in cli("parked", "list", "billing", "--limit", "4").stdout


def test_nothing_that_is_held_steers_a_terminal(shop: Path, cli: Cli) -> None:
    leave_behind(FOUR)
    for arguments in (["list"], ["list", "--json"], ["show", STEERING], ["show", STEERING, "--json"], ["redrive", STEERING]):
        result = cli("parked", arguments[0], "billing", *arguments[1:])
        assert result.exit_code == 0
        assert (result.stdout + result.stderr).replace("\n", "").isprintable()
    missing = cli("parked", "show", "billing", STEERING + "x")
    assert missing.stderr.rstrip("\n").isprintable()


def test_a_skip_by_error_names_each_key_and_asks_for_those_alone(shop: Path, cli: Cli) -> None:
    leave_behind(FOUR)
    shown = on_terminal(["parked", "skip", "billing", "--error", "KeyError"], columns=80, typed="n\n")
    assert [line.split()[0] for line in shown if " parked " in line] == ["bob", printable(STEERING)]
    assert any("the first event of each of these 2 keys" in line for line in shown)
    assert requests() == 0
    result = cli("parked", "skip", "billing", "--error", "KeyError", "--yes")
    assert "the request for 2 keys is filed" in result.stdout
    assert requests() == 2


def test_a_subscription_of_another_name_is_said(shop: Path, cli: Cli) -> None:
    leave_behind([failed(1, "ada")])
    leave_behind([failed(2, "ada"), failed(3, "bob")], subscription="mail")
    assert "mail: shop.order_placed/1 failed" in cli("parked", "list", "billing").stdout
    assert len(json.loads(cli("parked", "show", "billing", "ada", "--json").stdout)) == 2
    result = cli("parked", "skip", "billing", "ada", "--yes")
    assert result.exit_code == 2
    assert "is held by billing, mail: say which with --subscription" in result.stderr
    assert cli("parked", "skip", "billing", "ada", "--yes", "--subscription", "mail").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["list", "biling"], 1, "app 'biling' has no store at sqlite:"),
        (["list", "bil/../\x1b[31m"], 1, "has no store at sqlite:"),
        (["list", "billing", "--store-url", "sqlite::memory:"], 1, "app 'billing' has no store at sqlite::memory:"),
        (
            ["list", "loyalty", "--store-url", "sqlite:.everlog/billing.db"],
            1,
            "belongs to app 'billing', and this command names 'loyalty'",
        ),
        (["list", "billing", "--subscription", "bill"], 1, "there is no subscription 'bill' in the store: did you mean billing?"),
        (["list", "billing", "--type", "shop.order_placd/1"], 1, "did you mean shop.order_placed/1?"),
        (["list", "billing", "--key", "bobb"], 1, "did you mean bob?"),
        (["list", "billing", "--limit", "0"], 2, "--limit"),
        (["show", "billing", "zzz"], 1, "`everlog parked list billing` has all 4"),
        (["redrive", "billing"], 2, "expected a KEY, --type or --error, or else --all"),
        (["redrive", "billing", "ada", "--all"], 2, "expected a KEY, --type or --error, or else --all"),
        (["redrive", "billing", "adaa"], 1, "did you mean ada?"),
        (["skip", "billing"], 2, "expected a KEY, --type or --error, or else --all"),
        (["skip", "billing", "--all", "--type", "shop.order_placed/1"], 2, "or else --all"),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_line(shop: Path, cli: Cli, arguments: list[str], code: int, message: str) -> None:
    leave_behind(FOUR)
    result = cli("parked", *arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.rstrip("\n").isprintable()
    assert requests() == 0


def test_a_store_of_a_newer_version_is_left_alone(shop: Path, cli: Cli) -> None:
    leave_behind(FOUR)
    with closing(sqlite3.connect(".everlog/billing.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    for arguments in (["list", "billing"], ["redrive", "billing", "--all"], ["skip", "billing", "--all", "--yes"]):
        result = cli("parked", *arguments)
        assert result.exit_code == 4
        assert "version 99" in result.stderr
        assert result.stderr.count("\n") == 1


def test_no_store_is_made_by_looking(shop: Path, cli: Cli) -> None:
    assert cli("parked", "list", "billing").exit_code == 1
    assert cli("skipped", "list", "billing").exit_code == 1
    assert cli("retire", "billing", "billing", "--yes").exit_code == 1
    assert not (shop / ".everlog").exists()


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize(
    "key",
    ["c1", "0f8fad5b-d9cb-469f-a165-70867728950e", "k" * 200, "鍵" * 50, STEERING],
    ids=["short", "uuid", "long", "wide", "steering"],
)
def test_the_list_fits_a_terminal_whatever_the_keys(key: str, columns: int) -> None:
    held = Held(1, "billing", 0, key, record(1, key), Cause.FAILED, 12, "RuntimeError: " + "something went wrong " * 9, "", 1, 0)
    console = Console(width=columns, file=io.StringIO(), force_terminal=True, color_system=None)
    with console.capture() as captured:
        KeyList("billing", console, 0).print([ParkedKey("billing", key, 1_033, held)])
    lines = captured.get().splitlines()
    assert lines[0].split() == ["key", "state", "behind", "attempts", "held"]
    assert max(map(cell_len, lines)) <= columns
    assert lines[-1].endswith("…")
    assert "blocked, next in 0 ms   1,032        12  0 ms ago" in lines[-2]
    assert "".join([line.split("  ")[0] for line in lines[1:-1]]).replace(" ", "") == printable(key)
