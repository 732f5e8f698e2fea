"""Every error is one line on stderr and an exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from tests.cli.shop import Cli

from everlog.cli import exits
from everlog.errors import (
    CommandRefused,
    FileDamaged,
    FileNewer,
    FilePlace,
    FileStrange,
    ModuleRefused,
    StartUndecided,
    WrongLog,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CommandRefused("no"), 1),
        (FileDamaged("no"), 1),
        (FileNewer("no"), 4),
        (FileStrange("no"), 4),
        (FilePlace("no"), 4),
        (ModuleRefused("no"), 2),
        (StartUndecided("no"), 4),
        (WrongLog("no"), 4),  # a subclass of StartRefused as well
        (typer.BadParameter("no"), 2),
        (typer.Abort(), 1),
        (ValueError("no"), 1),
    ],
)
def test_an_error_is_one_line_and_a_code(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert exits.report(error, is_debug=False) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("everlog: ")
    assert captured.err.count("\n") == 1


def test_an_error_is_named_as_the_documentation_lists_it(capsys: pytest.CaptureFixture[str]) -> None:
    exits.report(WrongLog("another log"), is_debug=False)
    assert capsys.readouterr().err == "everlog: another log [WrongLog]\n"
    exits.report(CommandRefused("no such key"), is_debug=False)
    assert capsys.readouterr().err == "everlog: no such key\n"


def test_a_place_that_cannot_be_one_is_refused(folder: Path, cli: Cli) -> None:
    for url, said in (
        ("sqlite", "expected a URL like sqlite:PATH"),
        ("sqlite://host/y.db", "found a host"),
        ("sqlite:{app}.db", "expected one log for all apps"),
    ):
        result = cli("status", "--log-url", url)
        assert (result.exit_code, said in result.stderr) == (4, True), result.output
    assert [path.name for path in folder.iterdir() if path.name.startswith(("sqlite", "{app}", ".db"))] == []


def test_a_message_of_several_lines_becomes_one(capsys: pytest.CaptureFixture[str]) -> None:
    exits.report(ValueError("first\n  second"), is_debug=False)
    assert capsys.readouterr().err.startswith("everlog: ValueError: first second")


def test_debug_shows_the_traceback_as_well(shop: Path, cli: Cli) -> None:
    assert "Traceback" not in cli("status").stderr
    result = cli("--debug", "status")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("everlog: there is no log")


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["status", "--nonsense"], ["publish"], ["tail", "--limit", "none"], ["--nonsense"]]
)
def test_wrong_usage_is_one_line_and_code_2(arguments: list[str], folder: Path, cli: Cli) -> None:
    result = cli(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("everlog: ")
    assert result.stderr.count("\n") == 1
    assert "--help" in result.stderr


def test_a_wrong_environment_is_refused_with_4(folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLOG_LOG_ULR", "sqlite:x")
    result = cli("status")
    assert (result.exit_code, result.stderr.count("\n")) == (4, 1)
    assert "EVERLOG_LOG_URL" in result.stderr


def test_the_version_is_the_packages(folder: Path, cli: Cli) -> None:
    result = cli("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("everlog ")


def test_a_place_is_the_users_own_line(tmp_path: Path) -> None:
    code = compile("\n\nraise ValueError('x')", str(tmp_path / "theirs.py"), "exec")
    with pytest.raises(ValueError, match="x") as raised:
        exec(code, {})
    assert exits.place_of(raised.value).endswith("theirs.py:3)")
