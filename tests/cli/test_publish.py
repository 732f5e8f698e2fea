"""`everlog publish`: what is refused, what is stored, and that a repeated run stores nothing twice."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
from tests.cli.shop import EVERLOG, PATIENCE_S, Cli, Start, on_terminal, orders

TYPE = "shop.order_placed/1"


def stored(cli: Cli) -> list[tuple[str, str]]:
    """Return source and order of each event in the log, in the order of the log."""
    topics = json.loads(cli("topics", "--json").stdout)
    count = sum(topic["events"] for topic in topics)
    lines = cli("tail", "--from", "beginning", "--json", "--limit", str(count)).stdout.splitlines() if count else []
    return [(event["source"], event["data"].get("order") or event["data"]["text"]) for event in map(json.loads, lines)]


def test_an_event_of_the_command_line_is_stored(shop: Path, cli: Cli) -> None:
    result = cli(
        "publish", "shop", TYPE, "--data", '{"order": "1", "customer": "ada"}', "--header", "traceparent=t", "--source", "me"
    )
    assert (result.exit_code, result.stdout) == (0, "published 1 event to shop.orders\n")
    event = json.loads(cli("tail", "--from", "beginning", "--limit", "1", "--json").stdout)
    assert (event["source"], event["subject"], event["headers"]) == ("me", "ada", {"traceparent": "t"})
    assert event["data"] == {"order": "1", "customer": "ada", "cents": 0}


def test_a_file_and_stdin_store_each_line(shop: Path, cli: Cli) -> None:
    (shop / "orders.jsonl").write_text(orders("ada", "bob") + "\n\n")
    assert cli("publish", "shop", TYPE, "orders.jsonl").stdout == "published 2 events to shop.orders\n"
    assert cli("publish", "shop", TYPE, "-", stdin=orders("cy")).stdout == "published 1 event to shop.orders\n"
    assert sorted(stored(cli)) == [("cli", "1"), ("cli", "1"), ("cli", "2")]


def test_a_bad_line_of_a_file_publishes_nothing(shop: Path, cli: Cli) -> None:
    (shop / "orders.jsonl").write_text(orders(*["ada"] * 1_500) + '{"order": 1}\n')
    result = cli("publish", "shop", TYPE, "orders.jsonl")
    assert result.exit_code == 1
    assert result.stderr == "everlog: orders.jsonl:1501: field order: expected str, found int [EventRefused]\n"
    assert cli("topics").stderr.startswith("everlog: there is no log")


def test_a_bad_line_of_a_pipe_says_how_much_was_published_before(shop: Path, cli: Cli) -> None:
    result = cli("publish", "shop", TYPE, stdin=orders(*["ada"] * 5_000) + "{\n")
    assert result.exit_code == 1
    assert result.stderr.startswith("everlog: stdin:5001: expected a JSON object, found broken JSON: input data was truncated (")
    count = len(stored(cli))
    assert count >= 4_000
    assert f"({count:,} events published before that)" in result.stderr


def test_ctrl_c_reaches_it_while_it_waits_for_a_pipe(shop: Path, cli: Cli) -> None:
    process = subprocess.Popen(
        [EVERLOG, "publish", "shop", TYPE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(orders("ada").encode())
    process.stdin.flush()
    while cli("topics").exit_code != 0 or not stored(cli):
        pass  # it publishes a line as soon as it has it
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert said == b"everlog: interrupted: 1 event published before that\n"


def test_a_repeated_run_under_a_producers_name_stores_nothing_twice(shop: Path, cli: Cli) -> None:
    file = shop / "orders.jsonl"
    customers = [f"customer {number % 7}" for number in range(2_500)]
    file.write_text(orders(*customers[:1_200]))
    assert (
        cli("publish", "shop", TYPE, "orders.jsonl", "--producer", "import").stdout == "published 1,200 events to shop.orders\n"
    )
    file.write_text(orders(*customers))
    again = cli("publish", "shop", TYPE, "orders.jsonl", "--producer", "import")
    assert again.stdout == "published 1,300 events to shop.orders; 1,200 more were stored before\n"
    piped = cli("publish", "shop", TYPE, "--producer", "import", "--json", stdin=orders(*customers))
    assert (json.loads(piped.stdout)["published"], json.loads(piped.stdout)["skipped"]) == (0, 2_500)
    assert sorted(int(order) for _, order in stored(cli)) == list(range(1, 2_501))


def test_a_run_that_was_killed_goes_on_where_it_stopped(shop: Path, cli: Cli, start: Start) -> None:
    customers = [f"customer {number % 7}" for number in range(60_000)]
    (shop / "orders.jsonl").write_text(orders(*customers))
    cli("publish", "shop", TYPE, "--data", '{"order": "0", "customer": "x"}')  # so that there is a log to follow
    follower = start("tail", "--json")
    publisher = start("publish", "shop", TYPE, "orders.jsonl", "--producer", "import")
    follower.wait_for("customer")
    publisher.end(signal.SIGKILL)
    first = {topic["name"]: topic["events"] for topic in json.loads(cli("topics", "--json").stdout)}["shop.orders"] - 1
    assert 0 < first < 60_000
    result = cli("publish", "shop", TYPE, "orders.jsonl", "--producer", "import", "--json")
    assert json.loads(result.stdout)["skipped"] == first
    assert sorted(int(order) for _, order in stored(cli)) == list(range(60_001))
    assert cli("verify").exit_code == 0


def test_a_topic_without_keys_gives_a_line_the_same_partition_in_each_run(shop: Path, cli: Cli) -> None:
    file = shop / "notes.jsonl"
    file.write_text("".join(f'{{"text": "{number}"}}\n' for number in range(10)))
    for expected in ("published 10 events to shop.notes\n", "published 0 events to shop.notes; 10 more were stored before\n"):
        assert cli("publish", "shop", "shop.note_taken/1", "notes.jsonl", "--producer", "import").stdout == expected
    file.write_text("".join(f'{{"text": "{number}"}}\n' for number in range(13)))
    assert cli("publish", "shop", "shop.note_taken/1", "notes.jsonl", "--producer", "import").exit_code == 0
    assert sorted(int(text) for _, text in stored(cli)) == list(range(13))


def test_a_file_that_lost_lines_is_refused(shop: Path, cli: Cli) -> None:
    (shop / "orders.jsonl").write_text(orders("ada", "ada"))
    cli("publish", "shop", TYPE, "orders.jsonl", "--producer", "import")
    (shop / "orders.jsonl").write_text(orders("ada"))
    result = cli("publish", "shop", TYPE, "orders.jsonl", "--producer", "import")
    assert result.exit_code == 1
    assert "a file may only grow" in result.stderr
    assert len(stored(cli)) == 2


def test_two_types_under_one_producers_name_do_not_take_each_others_numbers(shop: Path, cli: Cli) -> None:
    text = (shop / "shop.py").read_text()
    (shop / "shop.py").write_text(
        text + '\n@orders.event("shop.order_cancelled/1")\nclass Cancelled(Event):\n    order: str\n    customer: str\n'
    )
    for name in (TYPE, "shop.order_cancelled/1"):
        assert (
            cli("publish", "shop", name, "--producer", "import", stdin=orders("ada")).stdout
            == "published 1 event to shop.orders\n"
        )


def test_a_key_goes_with_a_topic_without_a_key_field(shop: Path, cli: Cli) -> None:
    assert cli("publish", "shop", "shop.note_taken/1", "--key", "k", "--data", '{"text": "x"}').exit_code == 0
    assert json.loads(cli("tail", "--from", "beginning", "--limit", "1", "--json").stdout)["subject"] == "k"
    refused = cli("publish", "shop", TYPE, "--key", "k", "--data", "{}")
    assert refused.exit_code == 2
    assert "takes its key from the field 'customer'" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["shop", "shop.order_placed"], 1, "did you mean shop.order_placed/1?"),
        (["shop", TYPE, "missing.jsonl"], 2, "missing.jsonl does not exist"),
        (["shop", TYPE, "."], 2, ". is a folder"),
        (["shop", TYPE, "shop.py", "--data", "{}"], 2, "expected FILE or --data, found both"),
        (["shop", TYPE, "--header", "x", "--data", "{}"], 2, "expected NAME=VALUE, found 'x'"),
        (["shop", TYPE, "--header", "X=1", "--data", "{}"], 1, "header 'X'"),
        (["shop", TYPE, "--data", "{}"], 1, "--data:1: object missing required field order (nothing published before that)"),
        (["shop", TYPE, "--data", "{}", "--log-url", "memory:"], 1, "the log memory: lives in one process"),
        (
            ["shop", TYPE, "--data", '{"order": "1", "customer": "a"}', "--no-create-topics"],
            1,
            "topic 'shop.orders' does not exist",
        ),
    ],
)
def test_what_cannot_be_published_is_refused_in_one_line(
    shop: Path, cli: Cli, arguments: list[str], code: int, message: str
) -> None:
    result = cli("publish", *arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_terminal_sees_a_bar_and_then_only_the_result(shop: Path) -> None:
    (shop / "orders.jsonl").write_text(orders("ada"))
    assert on_terminal(["publish", "shop", TYPE, "orders.jsonl"], columns=80)[-1].endswith("published 1 event to shop.orders")


def test_events_that_are_pydantic_models_are_published_and_checked(folder: Path, cli: Cli) -> None:
    (folder / "models.py").write_text(
        "from pydantic import BaseModel\nfrom everlog import Topic\n\nreadings = Topic('shop.readings', key='sensor')\n\n\n"
        "@readings.event('shop.measured/1')\nclass Measured(BaseModel):\n    sensor: str\n    celsius: float\n"
    )
    right = cli("publish", "models", "shop.measured/1", "--data", '{"sensor": "a", "celsius": 1.5}')
    assert right.exit_code == 0, right.output
    wrong = cli("publish", "models", "shop.measured/1", "--data", '{"sensor": "a", "celsius": "hush"}')
    assert (wrong.exit_code, "celsius: Input should be a valid number" in wrong.stderr, "hush" in wrong.stderr) == (
        1,
        True,
        False,
    )
    strange = cli("publish", "models", "shop.measured/1", "--data", '{"sensor": "a", "celsius": 1, "kelvin": 2}')
    assert (strange.exit_code, "it has sensor, celsius" in strange.stderr) == (1, True), strange.output
    assert '"celsius":1.5' in cli("tail", "--from", "beginning", "--limit", "1").stdout
