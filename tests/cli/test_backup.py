"""`everlog backup`: copies that fit together, all of them or none, while apps run."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.cli.shop import Cli, Start, on_terminal, publish

from everlog.errors import FileDamaged
from everlog.logs.sqlite import SqliteLog
from everlog.logs.sqlite import log as log_module
from everlog.stores.sqlite import SqliteStore


def worked(start: Start, *, orders: int) -> None:
    """Let both apps handle what is there."""
    worker = start("run", "shop:loyalty", "shop:billing")
    for _ in range(orders):
        worker.wait_for("rewarded")
    assert worker.end(signal.SIGTERM) == 0


def names(folder: Path) -> list[str]:
    return sorted(found.name for found in folder.iterdir())


def test_an_app_goes_on_from_the_copies_of_a_backup_that_was_made_while_it_ran(shop: Path, cli: Cli, start: Start) -> None:
    publish(cli, "ada", "bob")
    worker = start("run", "shop:loyalty", "shop:billing")
    worker.wait_for("rewarded")
    worker.wait_for("rewarded")
    result = cli("backup", "out", "loyalty", "billing")
    assert result.exit_code == 0, result.output
    assert worker.end(signal.SIGTERM) == 0
    out = shop / "out"
    assert names(out) == ["billing.db", "log.db", "loyalty.db"]
    assert [line.split()[:-1] for line in result.stdout.splitlines()] == [
        ["copy", "of", "file"],
        ["store", "of", "loyalty", str(out / "loyalty.db")],
        ["store", "of", "billing", str(out / "billing.db")],
        ["log", str(out / "log.db")],
    ]
    copies = ("--log-url", f"sqlite:{out}/log.db", "--store-url", f"sqlite:{out}/{{app}}.db")
    assert cli("verify", "--app", "loyalty", "--app", "billing", *copies).exit_code == 0
    published = cli("publish", "shop", "shop.order_placed/1", "--data", '{"order": "7", "customer": "cy"}', *copies[:2])
    assert published.exit_code == 0
    worker = start("run", "shop:loyalty", *copies)
    worker.wait_for("rewarded 7")
    assert worker.end(signal.SIGTERM) == 0


CHAIN = """
from everlog import App, Event, Topic

orders = Topic("chain.orders", key="id")
bills = Topic("chain.bills", key="id")


@orders.event("chain.ordered/1")
class Ordered(Event):
    id: str


@bills.event("chain.billed/1")
class Billed(Event):
    id: str


app = App("chain")


@app.on(Ordered)
async def bill(event: Ordered) -> Billed:
    print("billed", event.id, flush=True)
    return Billed(event.id)
"""


def test_a_store_that_is_put_back_beside_a_log_that_went_on_is_refused_if_its_handlers_publish(
    shop: Path, cli: Cli, start: Start
) -> None:
    (shop / "chain.py").write_text(CHAIN)
    for number in ("1", "2"):
        assert cli("publish", "chain", "chain.ordered/1", "--data", f'{{"id": "{number}"}}').exit_code == 0
        worker = start("run", "chain")
        worker.wait_for(f"billed {number}")
        assert worker.end(signal.SIGTERM) == 0  # with its outbox sent
        assert cli("backup", f"out{number}", "chain").exit_code == 0
    whole = ("--log-url", f"sqlite:{shop}/out1/log.db", "--store-url", f"sqlite:{shop}/out1/{{app}}.db")
    worker = start("run", "chain", *whole)
    worker.wait_for("chain is running")
    assert worker.end(signal.SIGTERM) == 0
    older = start("run", "chain", "--store-url", f"sqlite:{shop}/out1/{{app}}.db")
    assert older.end() == 4
    assert "the store is older than the log" in older.text


def test_the_log_is_copied_last_so_that_it_is_not_older_than_a_store(
    shop: Path, cli: Cli, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(cli, "ada")
    worked(start, orders=1)
    order: list[str] = []
    for kind in (SqliteStore, SqliteLog):
        monkeypatch.setattr(kind, "backup", _noted(kind.backup, kind.__name__, order))
    result = cli("backup", "out", "loyalty", "billing", "--json")
    assert order == ["SqliteStore", "SqliteStore", "SqliteLog"]
    shown = json.loads(result.stdout)
    assert [copy["what"] for copy in shown["copies"]] == ["store of loyalty", "store of billing", "log"]
    assert shown["copies"][2]["source"] == f"sqlite:{shop}/.everlog/log.db"
    assert shown["copies"][2]["bytes"] == (shop / "out/log.db").stat().st_size
    assert shown["verified"] is True


def _noted(backup: Callable[..., Any], name: str, order: list[str]) -> Callable[..., Any]:
    async def noted(self: object, *arguments: object, **options: object) -> None:
        order.append(name)
        await backup(self, *arguments, **options)

    return noted


def test_where_one_cannot_be_copied_none_is_left(shop: Path, cli: Cli, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(cli, "ada")
    worked(start, orders=1)

    async def damaged(*_: object, **__: object) -> None:
        assert names(shop / "out") == ["loyalty.db"]
        raise FileDamaged("log.db: SQLite found it damaged")

    monkeypatch.setattr(SqliteLog, "backup", damaged)
    result = cli("backup", "out", "loyalty")
    assert result.exit_code == 1
    assert result.stderr == "everlog: log.db: SQLite found it damaged [FileDamaged]\n"
    assert names(shop / "out") == []


@pytest.mark.parametrize("name", ["log.db", "loyalty.db"])
def test_a_file_that_is_there_is_not_replaced_and_nothing_is_begun(shop: Path, cli: Cli, start: Start, name: str) -> None:
    publish(cli, "ada")
    worked(start, orders=1)
    (shop / "out").mkdir()
    (shop / "out" / name).write_text("my diary")
    result = cli("backup", "out", "loyalty")
    assert result.exit_code == 1
    assert f"{shop}/out/{name} exists, and a backup replaces nothing" in result.stderr
    assert names(shop / "out") == [name]
    assert (shop / "out" / name).read_text() == "my diary"


def test_what_is_not_there_cannot_be_copied_and_is_not_made(shop: Path, cli: Cli) -> None:
    assert cli("backup", "out").exit_code == 1
    publish(cli, "ada")
    result = cli("backup", "out", "loyalty")
    assert result.exit_code == 1
    assert "app 'loyalty' has no store" in result.stderr
    assert not (shop / "out").exists()
    assert not (shop / ".everlog/loyalty.db").exists()


def test_a_log_in_memory_cannot_be_copied(shop: Path, cli: Cli) -> None:
    result = cli("backup", "out", "--log-url", "memory:")
    assert result.exit_code == 1
    assert "lives in one process" in result.stderr


def test_a_log_that_cannot_be_copied_into_a_file_is_refused_before_anything_is(
    shop: Path, cli: Cli, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(cli, "ada")
    worked(start, orders=1)
    without = msgspec.structs.replace(log_module._FEATURES, backup=False)
    monkeypatch.setattr(log_module, "_FEATURES", without)
    result = cli("backup", "out", "loyalty")
    assert result.exit_code == 4
    assert "use the backup of that server" in result.stderr
    assert not (shop / "out").exists()


def test_an_app_that_is_called_like_the_log_is_copied_by_itself(shop: Path, cli: Cli) -> None:
    publish(cli, "ada")
    result = cli("backup", "out", "log")
    assert result.exit_code == 1
    assert "would have the same name" in result.stderr


def test_without_verifying_the_copy_is_not_read_again(shop: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*_: object) -> None:
        raise AssertionError

    publish(cli, "ada")
    monkeypatch.setattr("everlog.drivers.sqlite.backup._check", unexpected)
    result = cli("backup", "out", "--no-verify", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["verified"] is False
    assert isinstance(cli("backup", "again").exception, AssertionError | SystemExit)
    assert names(shop / "again") == []


def test_a_terminal_sees_whole_lines(shop: Path, cli: Cli) -> None:
    publish(cli, "ada")
    shown = on_terminal(["backup", "out"], columns=80)
    assert "log" in shown[-1]
    assert max(map(len, shown[-2:])) <= 80


def test_a_stop_with_ctrl_c_leaves_nothing(shop: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(cli, "ada")

    async def interrupted(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()

    monkeypatch.setattr(SqliteLog, "backup", interrupted)
    assert cli("backup", "out").exit_code == 130
    assert not (shop / "out").exists()
