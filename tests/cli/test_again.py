"""`everlog replay` and `everlog rewind`: a plan, a question, and workers that begin again."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
from tests.cli.shop import Cli, Start, publish

COUNTS = """
import os

from everlog import App, Delivery, Event, Topic, Tx
from shop import OrderPlaced

totals = Topic("shop.totals", key="customer", partitions=4)


@totals.event("shop.totalled/1")
class Totalled(Event):
    customer: str
    cents: int


books = App("books", delivery=Delivery(start="beginning"))
sums = books.state("sums/1", int)


@books.on(OrderPlaced)
async def add(order: OrderPlaced, tx: Tx) -> Totalled:
    await tx.sql("CREATE TABLE IF NOT EXISTS entries (customer TEXT)")
    await tx.sql("INSERT INTO entries VALUES (?)", order.customer)
    total = await tx.get(sums, order.customer, 0) + int(os.environ.get("CENTS", "1"))
    tx.put(sums, order.customer, total)
    entries = (await tx.sql("SELECT count(*) FROM entries"))[0][0]
    print(f"{order.customer} {total} | {entries}{' again' if tx.replaying else ''}", flush=True)
    return Totalled(order.customer, total)


@books.reset
async def empty(tx: Tx) -> None:
    await tx.sql("DELETE FROM entries")
"""


@pytest.fixture
def counts(shop: Path, cli: Cli, start: Start) -> Path:
    """An app that has handled two orders of ada and one of bob."""
    (shop / "counts.py").write_text(COUNTS)
    publish(cli, "ada", "ada", "bob")
    work(start, 3)
    return shop


def work(start: Start, orders: int) -> list[str]:
    """Let the app run until it has handled so many orders; return what it said of each."""
    worker = start("run", "counts")
    worker.wait_for("is running")
    said = [worker.wait_for(" | ") for _ in range(orders)]
    assert worker.end(signal.SIGTERM) == 0, worker.text
    return said


def test_a_replay_with_mended_code_rebuilds_the_state_and_publishes_nothing_twice(
    counts: Path, cli: Cli, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = cli("replay", "counts", "--yes")
    assert result.exit_code == 0, result.output
    assert "subscription books: 3 events that it has passed will be handled again" in result.output
    assert "its state (sums/1) begins empty, and is rebuilt" in result.output
    assert "its reset hook empties the tables" in result.output
    assert "no worker is running: it goes on with the next `everlog run`" in result.output
    monkeypatch.setenv("CENTS", "10")
    publish(cli, "bob")
    said = work(start, 4)
    assert sorted(line.split(" | ")[0] for line in said) == ["ada 10", "ada 20", "bob 10", "bob 20"]
    assert sorted(line.split(" | ")[1].split()[0] for line in said) == ["1", "2", "3", "4"]  # the table was emptied
    assert sum("again" in line for line in said) == 3
    published = cli("publish", "shop", "shop.order_placed/1", "--data", '{"order": "9", "customer": "end"}')
    assert published.exit_code == 0
    assert work(start, 1) == ["end 10 | 5"]
    found = cli("tail", "--from", "beginning", "--topic", "shop.totals", "--limit", "5", "--json").stdout
    totals = sorted((line["data"]["customer"], line["data"]["cents"]) for line in map(json.loads, found.splitlines()))
    assert totals == [("ada", 1), ("ada", 2), ("bob", 1), ("bob", 20), ("end", 10)]


def test_workers_begin_again_while_the_command_shows_how_far_they_are(counts: Path, cli: Cli, start: Start) -> None:
    worker = start("run", "counts")
    worker.wait_for("is running")
    result = cli("replay", "counts", "--yes")
    assert result.exit_code == 0, result.output
    assert "1 worker" in result.output
    assert "all 3 are handled" in result.output
    assert [worker.wait_for(" again") for _ in range(3)]
    assert worker.end(signal.SIGTERM) == 0


def test_a_rewind_does_the_events_once_more_over_the_state_of_today(counts: Path, cli: Cli, start: Start) -> None:
    result = cli("rewind", "counts", "--from", "beginning", "--yes")
    assert result.exit_code == 0, result.output
    assert "EVERYTHING that its handlers publish for these events is published again" in result.output
    said = work(start, 3)
    assert sorted(line.split(" | ")[0] for line in said) == ["ada 3", "ada 4", "bob 2"]
    assert not any("again" in line for line in said)


def test_nothing_changes_without_a_yes(counts: Path, cli: Cli, start: Start) -> None:
    result = cli("replay", "counts")
    assert (result.exit_code, "say --yes" in result.stderr) == (1, True), result.output
    publish(cli, "cyd")
    assert [line.split(" | ")[0] for line in work(start, 1)] == ["cyd 1"]


def test_state_is_not_rebuilt_from_a_part_of_its_events(counts: Path, cli: Cli, start: Start) -> None:
    part = cli("replay", "counts", "--from", "2020-01-01T00:00", "--yes")
    assert (part.exit_code, "say --keep-state" in part.stderr) == (1, True), part.output
    kept = cli("replay", "counts", "--from", "2020-01-01T00:00", "--keep-state", "--yes")
    assert kept.exit_code == 0, kept.output
    assert sorted(line.split(" | ")[0] for line in work(start, 3)) == ["ada 3", "ada 4", "bob 2"]


def test_where_retention_has_taken_the_beginning_a_replay_is_refused(counts: Path, cli: Cli) -> None:
    assert cli("topics", "set", "shop.orders", "--keep-s", "0.001", "--yes").exit_code == 0
    assert cli("topics", "trim").exit_code == 0
    result = cli("replay", "counts", "--yes")
    assert (result.exit_code, "retention has deleted" in result.stderr) == (1, True), result.output


def test_what_cannot_be_is_refused(counts: Path, cli: Cli) -> None:
    assert "did you mean" in cli("replay", "counts", "--subscription", "bocks", "--yes").stderr
    assert cli("replay", "counts", "--from", "yesterday", "--yes").exit_code == 2
    assert cli("rewind", "counts", "--yes").exit_code == 2
    nothing = cli("replay", "shop:loyalty", "--yes")
    assert (nothing.exit_code, "has no store" in nothing.stderr) == (1, True), nothing.output
    later = cli("replay", "counts", "--from", "2999-01-01T00:00", "--keep-state", "--yes")
    assert (later.exit_code, "nothing was changed" in later.output) == (0, True), later.output


def test_the_past_of_a_type_that_was_passed_by_is_handled_with_a_replay(counts: Path, cli: Cli, start: Start) -> None:
    grown = COUNTS + "\n\n@books.on(Cancelled)\nasync def take_back(cancelled: Cancelled) -> Totalled:\n"
    grown += "    print(f'{cancelled.customer} cancelled | ', flush=True)\n    return Totalled(cancelled.customer, 0)\n"
    cancelled = 'from everlog import App, Event\nfrom shop import orders\n\ndesk = App("desk")\n\n\n'
    cancelled += '@orders.event("shop.cancelled/1")\nclass Cancelled(Event):\n    customer: str\n'
    (counts / "cancelling.py").write_text(cancelled)
    assert cli("publish", "cancelling", "shop.cancelled/1", "--data", '{"customer": "ada"}').exit_code == 0
    publish(cli, "cyd")
    assert work(start, 1)[0].startswith("cyd")  # and it has passed by the cancelled one
    (counts / "counts.py").write_text(grown.replace("from shop", "from cancelling import Cancelled\nfrom shop"))
    refused = start("run", "counts")
    assert refused.end() == 4
    assert "`everlog replay MODULE:books --subscription books`" in refused.text
    again = cli("rewind", "counts", "--from", "beginning", "--yes")
    assert (again.exit_code, "--new-types now" in again.stderr) == (1, True), again.output
    result = cli("replay", "counts", "--yes")
    assert result.exit_code == 0, result.output
    assert "among them those of shop.cancelled/1, which it has passed by" in result.output
    said = work(start, 5)
    assert sum("cancelled" in line for line in said) == 1
    found = cli("tail", "--from", "beginning", "--topic", "shop.totals", "--limit", "5", "--json").stdout
    totals = sorted((line["data"]["customer"], line["data"]["cents"]) for line in map(json.loads, found.splitlines()))
    assert totals == [("ada", 0), ("ada", 1), ("ada", 2), ("bob", 1), ("cyd", 1)]


def test_a_subscription_under_a_new_name_goes_on_once_the_older_code_has_stopped(counts: Path, cli: Cli, start: Start) -> None:
    named = "\n\n@books.subscription('{}'{}).on(OrderPlaced)\nasync def more(order: OrderPlaced) -> None:\n"
    named += "    print(f'{{order.customer}} more | ', flush=True)\n"
    older = COUNTS + named.format("emails", "")
    (counts / "counts.py").write_text(older)
    worker = start("run", "counts")
    for _ in range(3):
        worker.wait_for(" more | ")
    (counts / "newer.py").write_text(COUNTS + named.format("mail", ", renamed_from='emails'"))
    early = start("run", "newer")
    assert early.end() == 4
    assert "stop them first" in early.text
    assert worker.end(signal.SIGTERM) == 0, worker.text
    newer = start("run", "newer")
    newer.wait_for("is running")
    publish(cli, "dan")
    assert newer.wait_for(" more | ").startswith("dan")
    assert newer.end(signal.SIGTERM) == 0, newer.text
    assert newer.text.count(" more | ") == 1
    shown = cli("status", "--json").stdout
    assert '"mail"' in shown
    assert '"emails"' not in shown


def test_a_dry_run_shows_what_mended_code_would_make_of_it_and_changes_nothing(
    counts: Path, cli: Cli, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CENTS", "10")
    before = cli("status", "--json").stdout
    result = cli("replay", "counts", "--dry-run", "--yes")
    assert result.exit_code == 0, result.output
    assert "the store and the log stay as they are" in result.output
    assert "state sums/1: 2 different" in result.output
    assert '  sums/1 ["ada"]: 2 -> 20' in result.output
    assert '  sums/1 ["bob"]: 1 -> 10' in result.output
    assert "published: 3 different, and a replay publishes none of these again" in result.output
    assert '{"customer":"bob","cents":1} -> {"customer":"bob","cents":10}' in result.output
    assert without_ages(cli("status", "--json").stdout) == without_ages(before)
    publish(cli, "bob")
    assert [line.split(" | ")[0] for line in work(start, 1)] == ["bob 11"]


def without_ages(status: str) -> str:
    return re.sub(r'"[a-z_]*age_s": [0-9.e-]+', "", status)


def test_a_dry_run_of_code_that_does_the_same_finds_no_difference(counts: Path, cli: Cli, start: Start) -> None:
    worker = start("run", "counts")  # the copy is the dry run's alone, whoever works on the original
    worker.wait_for("is running")
    result = cli("replay", "counts", "--dry-run", "--yes")
    assert result.exit_code == 0, result.output
    assert "state sums/1: 2 rows, all the same" in result.output
    assert "published: 3 events, all the same" in result.output
    assert "a replay would change nothing" in result.output
    assert worker.end(signal.SIGTERM) == 0
    assert " again" not in worker.text


def test_a_dry_run_shows_what_fails_what_is_missing_and_what_is_published_for_the_first_time(counts: Path, cli: Cli) -> None:
    code = COUNTS.replace("async def add", "async def add2").replace(
        "    await tx.sql(", "    if order.customer == 'bob':\n        raise ValueError('no bobs')\n    await tx.sql(", 1
    )
    code = code.replace(
        "return Totalled(order.customer, total)", "return [Totalled(order.customer, total)] if total == 1 else []"
    )
    code = code.replace("-> Totalled:", "-> list[Totalled]:").replace("from shop", "from cancelling import Cancelled\nfrom shop")
    code += "\n\n@books.on(Cancelled)\nasync def take_back(cancelled: Cancelled) -> Totalled:\n    return Totalled(cancelled.customer, 0)\n"
    cancelled = 'from everlog import App, Event\nfrom shop import orders\n\ndesk = App("desk")\n\n\n'
    cancelled += '@orders.event("shop.cancelled/1")\nclass Cancelled(Event):\n    customer: str\n'
    (counts / "cancelling.py").write_text(cancelled)
    assert cli("publish", "cancelling", "shop.cancelled/1", "--data", '{"customer": "ada"}').exit_code == 0
    (counts / "counted.py").write_text(code)
    result = cli("replay", "counted", "--dry-run", "--json", "--yes")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["app"], found["events"]) == ("books", 3)
    assert found["states"]["sums/1"]["missing"] == 1
    assert {key: found["published"][key] for key in ("same", "different", "more", "missing")} == {
        "same": 1,
        "different": 0,
        "more": 0,
        "missing": 2,
    }
    assert found["published"]["first"][0]["after"] is None
    assert found["parked"] == [{"key": "bob", "events": 1, "error": "ValueError: no bobs"}]


def test_a_dry_run_needs_a_yes_and_takes_the_events_that_the_subscription_has_passed_alone(
    counts: Path, cli: Cli, start: Start
) -> None:
    publish(cli, "cyd")  # nobody has handled it
    refused = cli("replay", "counts", "--dry-run")
    assert (refused.exit_code, "say --yes" in refused.stderr) == (1, True), refused.output
    assert cli("replay", "counts", "--json").exit_code == 2
    result = cli("replay", "counts", "--dry-run", "--json", "--yes")
    found = json.loads(result.stdout)
    assert (found["states"]["sums/1"]["same"], found["states"]["sums/1"]["more"], found["published"]["same"]) == (2, 0, 3)
    assert [line.split(" | ")[0] for line in work(start, 1)] == ["cyd 1"]


def test_a_dry_run_shows_what_held_events_would_publish(
    counts: Path, cli: Cli, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = "    if os.environ.get('BROKEN') and order.customer == 'poison':\n        raise ValueError('no')\n    await tx.sql("
    (counts / "counts.py").write_text(COUNTS.replace("    await tx.sql(", broken, 1))
    monkeypatch.setenv("BROKEN", "1")
    publish(cli, "poison")
    worker = start("run", "counts")
    worker.wait_for("failed attempt 1")
    assert worker.end(signal.SIGTERM) == 0
    monkeypatch.delenv("BROKEN")
    result = cli("replay", "counts", "--dry-run", "--yes")
    assert result.exit_code == 0, result.output
    assert 'state sums/1: 2 the same, 1 more\n  sums/1 ["poison"]: nothing -> 1\n' in result.output
    assert "published: 3 events, all the same" in result.output
    assert "published for the first time: 1 event\n  shop.totals shop.totalled/1 poison: nothing -> {" in result.output
