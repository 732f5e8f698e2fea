"""`everlog skipped`: what was passed over, and forgetting it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.held import STEERING, leave_behind, record
from tests.cli.shop import Cli, on_terminal

from everlog.store import Skip


@pytest.fixture
def three(shop: Path) -> None:
    """A store whose app has skipped three events."""
    skips = [Skip(key, record(offset, key), f"KeyError: {offset}") for offset, key in enumerate(["ada", STEERING, "cy"], start=1)]
    leave_behind([], skips)


@pytest.mark.usefixtures("three")
def test_the_list_has_the_event_and_its_error(cli: Cli) -> None:
    shown = cli("skipped", "list", "billing").stdout.splitlines()
    assert [line.split()[0] for line in shown] == ["1", "2", "3"]
    assert "shop.order_placed/1  ada  shop.orders/0@1  KeyError: 1" in shown[0]
    found = json.loads(cli("skipped", "list", "billing", "--json").stdout)
    assert [(one["id"], one["key"], one["error"], one["event"]["data"]) for one in found[:2]] == [
        (1, "ada", "KeyError: 1", {"order": "1"}),
        (2, STEERING, "KeyError: 2", {"order": "1"}),
    ]


@pytest.mark.usefixtures("three")
def test_the_list_comes_in_pages(cli: Cli) -> None:
    shown = cli("skipped", "list", "billing", "--limit", "1", "--after", "1").stdout
    assert "KeyError: 2" in shown
    assert "KeyError: 3" not in shown
    assert "the next ones with --after 2" in shown
    assert "more" not in cli("skipped", "list", "billing", "--limit", "3").stdout


@pytest.mark.usefixtures("three")
def test_nothing_in_it_steers_a_terminal(cli: Cli) -> None:
    for arguments in (["list", "billing"], ["show", "billing", "2"], ["list", "billing", "--json"]):
        text = cli("skipped", *arguments).stdout
        assert text.replace("\n", "").isprintable()
    assert max(map(len, on_terminal(["skipped", "list", "billing"], columns=80))) <= 80


@pytest.mark.usefixtures("three")
def test_one_is_shown_in_whole(cli: Cli) -> None:
    shown = cli("skipped", "show", "billing", "1").stdout
    for text in ("ada", "shop.orders/0@1", "id-1", "KeyError: 1", '"order": "1"'):
        assert text in shown
    missing = cli("skipped", "show", "billing", "9")
    assert (missing.exit_code, missing.stderr.count("\n")) == (1, 1)
    assert "no skipped event 9" in missing.stderr


@pytest.mark.usefixtures("three")
def test_forgetting_asks_first_and_takes_no_more_than_it_said(cli: Cli) -> None:
    refused = cli("skipped", "forget", "billing")
    assert refused.exit_code == 1
    assert "say --yes" in refused.stderr
    shown = on_terminal(["skipped", "forget", "billing"], columns=120, typed="n\n")
    assert any("Delete the copies of 3 events that app 'billing' has passed over" in line for line in shown)
    assert len(json.loads(cli("skipped", "list", "billing", "--json").stdout)) == 3
    assert cli("skipped", "forget", "billing", "--through", "2", "--yes").stdout == "forgot 2 skipped events\n"
    assert [one["id"] for one in json.loads(cli("skipped", "list", "billing", "--json").stdout)] == [3]
    on_terminal(["skipped", "forget", "billing"], columns=120, typed="y\n")
    assert json.loads(cli("skipped", "list", "billing", "--json").stdout) == []
    assert cli("skipped", "forget", "billing").stdout == "app 'billing' has passed nothing over\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["list", "biling"], 1, "app 'biling' has no store at sqlite:"),
        (["list", "billing", "--subscription", "bill"], 1, "did you mean billing?"),
        (["forget", "billing", "--subscription", "bill", "--yes"], 1, "did you mean billing?"),
        (["show", "billing", "one"], 2, "valid integer"),
        (["list", "billing", "--limit", "0"], 2, "--limit"),
    ],
)
@pytest.mark.usefixtures("three")
def test_what_it_cannot_do_is_refused_in_one_line(cli: Cli, arguments: list[str], code: int, message: str) -> None:
    result = cli("skipped", *arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
