"""A folder with a user's module, the command line in this process, and workers and terminals in processes of their own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.shop import SHOP, Cli, Process, Start
from typer.testing import CliRunner, Result

from everlog.cli.root import app


@pytest.fixture
def shop(folder: Path) -> Iterator[Path]:
    """The current folder, with `shop.py` in it. What is imported from there is forgotten afterwards."""
    (folder / "shop.py").write_text(SHOP)
    path, modules = list(sys.path), set(sys.modules)
    yield folder
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def cli() -> Cli:
    """Run a command in this process."""
    runner = CliRunner()

    def run(*arguments: str, stdin: str | None = None) -> Result:
        return runner.invoke(app, list(arguments), input=stdin, prog_name="everlog")

    return run


@pytest.fixture
def start() -> Iterator[Start]:
    """Start `everlog` in processes of their own, which end with the test."""
    processes: list[Process] = []

    def make(*arguments: str) -> Process:
        processes.append(Process(*arguments))
        return processes[-1]

    yield make
    for process in processes:
        process.close()
