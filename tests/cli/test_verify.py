"""`everlog verify`: that it reads everything, and what it finds in a file that was changed."""

from __future__ import annotations

import json
from pathlib import Path

import apsw
import pytest
from tests.cli.shop import Cli, on_terminal, publish

from everlog.cli import verify as verify_module


def test_a_log_as_it_should_be_ends_with_0(shop: Path, cli: Cli) -> None:
    publish(cli, "ada", "bob")
    cli("publish", "shop", "shop.note_taken/1", "--data", '{"text": "x"}')
    result = cli("verify", "--contracts", "shop")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"sqlite:{shop}/.everlog/log.db: 3 events in 8 partitions",
        "checked: file, checksums, offsets, times, keys, numbers, data, ids, contracts",
        "nothing is wrong",
    ]


def test_a_type_that_the_module_does_not_declare_is_named_and_no_finding(shop: Path, cli: Cli) -> None:
    publish(cli, "ada")
    text = (shop / "shop.py").read_text()
    (shop / "older.py").write_text(
        text[: text.index("@orders.event")] + text[text.index("@notes.event") : text.index("billing =")]
    )
    result = cli("verify", "--contracts", "older")
    assert result.exit_code == 0
    assert "not decoded: 1 event of shop.order_placed/1, which older does not declare" in result.stdout


def test_another_schema_than_the_modules_is_found(shop: Path, cli: Cli) -> None:
    publish(cli, "ada")
    (shop / "newer.py").write_text((shop / "shop.py").read_text().replace("cents: int = 0", "cents: str = ''"))
    result = cli("verify", "--contracts", "newer", "--json")
    assert result.exit_code == 1
    findings = json.loads(result.stdout)["findings"]
    assert len(findings) == 2
    assert "another schema in topic 'shop.orders'" in findings[0]
    assert "it breaks its contract" in findings[1]


@pytest.mark.parametrize(
    ("sql", "finding"),
    [
        ("UPDATE chunk SET body = CAST(substr(body, 1, length(body) - 1) || x'00' AS BLOB)", "the checksum does not fit"),
        ("DELETE FROM chunk WHERE first = 0", "records are missing, and retention has not deleted them"),
        ("DELETE FROM chunk WHERE first = 1", "records since the log was made, found"),
    ],
)
def test_a_changed_file_is_found_and_ends_with_1(
    shop: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, sql: str, finding: str
) -> None:
    monkeypatch.setattr(verify_module, "_SILENCE_S", 0.05)  # nobody writes
    publish(cli, "ada")
    publish(cli, "ada")
    connection = apsw.Connection(str(shop / ".everlog/log.db"), vfs="cksmvfs")
    connection.execute(sql)
    connection.close()
    result = cli("verify")
    assert result.exit_code == 1
    assert finding in result.stdout
    assert result.stdout.splitlines()[-1].endswith(("finding", "findings"))


def test_a_terminal_sees_whole_lines(shop: Path, cli: Cli) -> None:
    publish(cli, "ada")
    assert on_terminal(["verify"], columns=80)[-1].endswith("nothing is wrong")
