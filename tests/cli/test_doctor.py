"""`everlog doctor`: what it prints, how it ends, and that it changes nothing."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.cli.shop import Cli, Start, on_terminal, publish

from everlog.drivers.sqlite import machine, volume
from everlog.finding import Judgement, Level


@pytest.fixture(autouse=True)
def sound_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that the tests run on is none of their business."""

    async def quick(_: Path) -> Judgement:
        return Judgement(Level.OK, "1.00 ms to bring 4 KiB to the disk")

    def local(_: Path) -> str:
        return "ext4"

    monkeypatch.setattr(volume, "_sync", quick)
    monkeypatch.setattr(volume, "file_system", local)
    monkeypatch.setattr(volume, "LOW_BYTES", 0)
    monkeypatch.setattr(volume, "NO_BYTES", 0)
    for name in ("FEW_FILES", "FEW_INSTANCES", "FEW_WATCHES"):
        monkeypatch.setattr(machine, name, 0)


def findings(cli: Cli, *arguments: str) -> dict[tuple[str, str], dict[str, Any]]:
    result = cli("doctor", *arguments, "--json")
    shown = json.loads(result.stdout)
    found = {(one["subject"], one["name"]): one for one in shown["findings"]}
    assert len(found) == len(shown["findings"])
    levels = [one["level"] for one in shown["findings"]]
    assert (shown["problems"], shown["warnings"]) == (levels.count("problem"), levels.count("warning"))
    assert result.exit_code == (1 if shown["problems"] else 0)
    return found


def worked(start: Start, *apps: str) -> None:
    worker = start("run", *[f"shop:{app}" for app in apps])
    worker.wait_for("rewarded")
    assert worker.end(signal.SIGTERM) == 0


def test_a_sound_folder_has_nothing_wrong_and_is_not_changed(shop: Path, cli: Cli, start: Start) -> None:
    publish(cli, "ada")
    worked(start, "loyalty", "billing")
    before = contents(shop)
    result = cli("doctor", "loyalty", "billing")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("nothing is wrong; what is stored was not read"), result.stdout
    assert [line for line in result.stdout.splitlines() if not line.startswith(" ")][:-1] == [
        "machine",
        f"{shop}/.everlog",
        "log",
        "store of loyalty",
        "store of billing",
    ]
    assert contents(shop) == before


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}


def test_it_looks_while_a_worker_runs(shop: Path, cli: Cli, start: Start) -> None:
    publish(cli, "ada")
    worker = start("run", "shop:loyalty")
    worker.wait_for("rewarded")
    found = findings(cli, "loyalty")
    assert {one["level"] for one in found.values()} == {"ok"}
    assert found["store of loyalty", "workers"]["found"] == "1 at work"
    publish(cli, "bob")
    worker.wait_for("rewarded")
    assert worker.end(signal.SIGTERM) == 0


def test_what_is_not_there_yet_is_said_with_what_to_do_and_not_made(shop: Path, cli: Cli) -> None:
    found = findings(cli, "loyalty")
    assert found["log", "file"]["level"] == "warning"
    assert found["log", "file"]["advice"].startswith("publish an event")
    assert found["store of loyalty", "file"]["advice"].startswith("run loyalty")
    assert not (shop / ".everlog").exists()


def test_a_store_of_another_log_is_a_problem(shop: Path, cli: Cli, start: Start) -> None:
    publish(cli, "ada")
    worked(start, "loyalty")
    result = cli(
        "publish", "shop", "shop.order_placed/1", "--data", '{"order": "1", "customer": "a"}', "--log-url", "sqlite:b.db"
    )
    assert result.exit_code == 0
    assert findings(cli, "loyalty")["store of loyalty", "log"]["level"] == "ok"
    finding = findings(cli, "loyalty", "--log-url", "sqlite:b.db")["store of loyalty", "log"]
    assert finding["level"] == "problem"
    assert "its progress belongs to log" in finding["found"]
    assert "--log-url" in finding["advice"]


def test_a_problem_is_printed_with_what_to_do_and_ends_with_1(shop: Path, cli: Cli) -> None:
    (shop / ".everlog").mkdir(mode=0o700)
    (shop / ".everlog/log.db").write_text("my diary\n" * 100)
    (shop / ".everlog/log.db").chmod(0o600)
    result = cli("doctor")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[-1] == "1 problem"
    (problem,) = [number for number, line in enumerate(lines) if line.strip().startswith("problem")]
    assert "is no log of Everlog" in lines[problem]
    assert lines[problem + 1].strip().startswith("→ ")


def test_secrets_of_a_url_are_never_printed(shop: Path, cli: Cli) -> None:
    urls = ("--log-url", "kafka://me:hunter2@host/x?key=hunter2", "--store-url", "postgres://me:hunter2@host/{app}?key=hunter2")
    for form in ((), ("--json",)):
        result = cli("doctor", "loyalty", *urls, *form)
        assert result.exit_code == 1
        assert "kafka://host/x" in result.stdout
        assert "//host/loyalty" in result.stdout
        assert "hunter2" not in result.output


def test_an_adapter_that_can_only_be_opened_is_no_problem(shop: Path, cli: Cli) -> None:
    assert findings(cli, "--log-url", "memory:")["log", "adapter"]["level"] == "ok"


def test_without_uvloop_it_says_what_is_used_instead(shop: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError, version

    def without(name: str) -> str:
        if name == "uvloop":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr("everlog.cli.doctor.version", without)
    finding = findings(cli)["machine", "uvloop"]
    assert (finding["level"], finding["found"]) == ("ok", "not installed")


def test_extras_are_named_with_those_that_are_missing(shop: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def needed(_: str) -> list[str]:
        return [
            "rich",
            "pytest; extra == 'dev'",
            "rich>=13 ; extra == 'pretty'",
            "rich; extra == 'kafka'",
            "no-such-client; extra == 'kafka'",
        ]

    monkeypatch.setattr("everlog.cli.doctor.requires", needed)
    assert findings(cli)["machine", "extras"]["found"] == "kafka (not installed), pretty"


@pytest.mark.parametrize("columns", [80, 120])
def test_it_fits_the_terminal(shop: Path, cli: Cli, columns: int) -> None:
    publish(cli, "ada")
    shown = on_terminal(["doctor"], columns=columns)
    assert shown[0] == "machine"
    assert max(map(len, shown)) <= columns
