"""CloudEvents on the command line: from one log into another, and from partners' tools into a log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from tests.cli.shop import Cli, orders

ORDER, NOTE = "shop.order_placed/1", "shop.note_taken/1"
OTHER = ("--log-url", "sqlite:other/log.db")


def of_partner(number: int, customer: str, **attributes: Any) -> str:
    """Return an order as the official SDK writes it."""
    event = CloudEvent(
        {"id": f"p-{number}", "source": "https://partner.example", "type": ORDER, "specversion": "1.0", **attributes},
        {"order": str(number), "customer": customer},
    )
    return JSONFormat().write(event).decode() + "\n"


def tailed(cli: Cli, count: int, *arguments: str) -> list[dict[str, Any]]:
    result = cli("tail", "--from", "beginning", "--cloudevents", "--limit", str(count), *arguments)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def without_place(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rest = [{name: value for name, value in event.items() if not name.startswith("everlog")} for event in events]
    return sorted(rest, key=lambda event: str(event["id"]))


def test_a_log_goes_into_another_and_every_attribute_with_it(shop: Path, cli: Cli) -> None:
    assert (
        cli("publish", "shop", ORDER, "--header", "traceparent=t", "--source", "my shop", stdin=orders(*"abcdefg")).exit_code == 0
    )
    assert cli("publish", "shop", NOTE, "--key", "k", "--data", '{"text": "hello"}').exit_code == 0
    lines = cli("tail", "--from", "beginning", "--cloudevents", "--limit", "8").stdout
    (shop / "events.jsonl").write_text(lines)
    copied = cli("publish", "shop", "--cloudevents", "events.jsonl", *OTHER)
    assert (copied.exit_code, copied.stdout) == (0, "published 8 events to shop.notes, shop.orders\n"), copied.output
    here, there = tailed(cli, 8), tailed(cli, 8, *OTHER)
    assert without_place(here) == without_place([*map(json.loads, lines.splitlines())])
    assert without_place(there) == without_place([{**event, "source": event["source"]} for event in here])
    assert {event["subject"] for event in there} == {*"abcdefg", "k"}
    assert there[0]["everlogposition"] != here[0]["everlogposition"]


def test_a_partner_s_events_come_through_a_pipe(shop: Path, cli: Cli) -> None:
    lines = of_partner(1, "ada", subject="ada", urgent=True) + of_partner(2, "bob")
    result = cli("publish", "shop", "--cloudevents", "--json", stdin=lines)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["topics"] == {"shop.orders": 2}
    first, second = without_place(tailed(cli, 2))
    assert (first["id"], first["source"], first["urgent"], first["data"]["customer"]) == (
        "p-1",
        "https://partner.example",
        "true",
        "ada",
    )
    assert second["subject"] == "bob", "the key is in the data"


def test_one_event_stands_on_the_command_line(shop: Path, cli: Cli) -> None:
    assert cli("publish", "shop", "--cloudevents", "--data", of_partner(1, "ada")).stdout == "published 1 event to shop.orders\n"


def test_a_file_that_has_grown_is_gone_on_with(shop: Path, cli: Cli) -> None:
    note = (
        JSONFormat().write(CloudEvent({"id": "n", "source": "s", "type": NOTE, "specversion": "1.0"}, {"text": "x"})).decode()
        + "\n"
    )
    file = shop / "events.jsonl"
    file.write_text(of_partner(1, "ada") + note * 3)
    again = ("publish", "shop", "--cloudevents", "events.jsonl", "--producer", "partner")
    assert cli(*again).stdout == "published 4 events to shop.notes, shop.orders\n"
    assert cli(*again).stdout == "published 0 events; 4 more were stored before\n"
    file.write_text(file.read_text() + note + of_partner(2, "bob"))
    assert cli(*again).stdout == "published 2 events to shop.notes, shop.orders; 4 more were stored before\n"
    file.write_text(note)
    shrunk = cli(*again)
    assert (shrunk.exit_code, "a file may only grow" in shrunk.stderr) == (1, True), shrunk.output
    assert len(tailed(cli, 6)) == 6


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            of_partner(2, "ada", subject="bob"),
            "subject: expected the key, 'ada', which is the field 'customer' of its data, found 'bob'",
        ),
        (
            of_partner(2, "ada").replace(ORDER, "shop.order_placed/9"),
            "type: there is no event type 'shop.order_placed/9' in shop: did you",
        ),
        (of_partner(2, "ada").replace('"order": "2"', '"order": 2'), "data:2: field order: expected str, found int"),
        (of_partner(2, "ada", everything="x").replace("everything", "Every-thing"), "attribute 'Every-thing': expected a name"),
        ("{}\n", "specversion: expected 1.0 of CloudEvents, found none"),
        ("[]\n", "expected a CloudEvent as one JSON object"),
    ],
)
def test_a_line_that_is_refused_publishes_nothing_of_its_file(shop: Path, cli: Cli, line: str, message: str) -> None:
    (shop / "events.jsonl").write_text(of_partner(1, "ada") + line)
    result = cli("publish", "shop", "--cloudevents", "events.jsonl")
    assert (result.exit_code, result.stderr.startswith("everlog: events.jsonl:2: "), message in result.stderr) == (
        1,
        True,
        True,
    ), result.stderr
    assert cli("topics").stderr.startswith("everlog: there is no log")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shop"], "expected the type of the events, or --cloudevents"),
        (["shop", ORDER, "file", "--cloudevents"], "each event says its type: expected MODULE [FILE]"),
        (["shop", "--cloudevents", "--key", "a"], "a CloudEvent says that itself"),
        (["shop", "--cloudevents", "--header", "a=b"], "a CloudEvent says that itself"),
        (["shop", "--cloudevents", "--source", "a"], "a CloudEvent says that itself"),
        (["shop", ORDER, "--source", "", "--data", "{}"], "expected a name, found an empty one"),
        (["shop", "--cloudevents", "nowhere"], "nowhere does not exist"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(shop: Path, cli: Cli, arguments: list[str], message: str) -> None:
    result = cli("publish", *arguments)
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


def test_a_header_of_a_name_that_the_platform_has_for_itself_is_refused(shop: Path, cli: Cli) -> None:
    result = cli("publish", "shop", ORDER, "--header", "everlogtopic=a", "--data", '{"order": "1", "customer": "a"}')
    assert "names that begin with 'everlog' say where a log has an event" in result.stderr


def test_tail_has_one_form_at_a_time(shop: Path, cli: Cli) -> None:
    assert cli("tail", "--json", "--cloudevents").exit_code == 2
