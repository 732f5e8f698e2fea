"""`everlog run --reload`: which files count, and what a change of one does."""

from __future__ import annotations

import signal
from pathlib import Path, PurePath

import pytest
from tests.cli.shop import Cli, Start

from everlog.cli import reload
from everlog.cli.reload import is_watched


@pytest.mark.parametrize(
    ("path", "watched"),
    [
        ("/home/ann/shop/shop.py", True),
        ("/home/ann/shop/deep/er/shop.py", True),
        ("/home/ann/shop/.shop.py", True),
        ("/home/ann/shop/shop.txt", False),
        ("/home/ann/shop/shop.pyc", False),
        ("/home/ann/shop/.venv/lib/shop.py", False),
        ("/home/ann/shop/deep/.hidden/shop.py", False),
        ("/home/ann/shop/node_modules/gyp/shop.py", False),
        ("/home/ann/shop/__pycache__/shop.py", False),
        ("/home/ann/shop/env/lib/python3.13/site-packages/shop.py", False),
        ("/home/ann/other/shop.py", False),
    ],
)
def test_the_users_python_files_are_watched_and_no_others(path: str, watched: bool) -> None:
    assert is_watched(PurePath(path), PurePath("/home/ann/shop")) is watched


def test_a_folder_below_a_hidden_one_is_watched_where_it_is_the_current_one() -> None:
    assert is_watched(PurePath("/home/ann/.work/shop/shop.py"), PurePath("/home/ann/.work/shop"))


def test_without_the_package_that_watches_it_says_what_to_install(shop: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> None:
        return None

    monkeypatch.setattr(reload, "find_spec", found)
    result = cli("run", "shop:billing", "--reload")
    assert result.exit_code == 1
    assert result.stderr == "everlog: --reload needs the package watchfiles: pip install 'everlog[reload]'\n"


def test_a_change_starts_all_workers_anew_and_a_syntax_error_waits_for_the_next_change(shop: Path, start: Start) -> None:
    (shop / "version.py").write_text("print('version 1', flush=True)\nfrom shop import *\n")
    supervisor = start("run", "version:billing", "--reload", "--workers", "2")
    supervisor.wait_for("worker 2 is running")
    (shop / "version.py").write_text("print('version 2', flush=True)\nfrom shop import *\n")
    supervisor.wait_for("version.py has changed")
    supervisor.wait_for("version 2")
    supervisor.wait_for("worker 2 is running")
    (shop / "version.py").write_text("print('version 3', flush=True)\nfrom shop import\n")
    supervisor.wait_for("SyntaxError: ")
    supervisor.wait_for("waiting for a change")
    (shop / "version.py").write_text("print('version 4', flush=True)\nfrom shop import *\n")
    supervisor.wait_for("version 4")
    supervisor.wait_for("worker 2 is running")
    assert supervisor.end(signal.SIGTERM) == 0
    assert supervisor.lines[-1] == "stopped"
    assert supervisor.text.count("SyntaxError") == 1
    assert supervisor.text.count("billing is running") == 1


def test_a_supervisor_that_waits_for_a_change_is_stopped_with_0(shop: Path, start: Start) -> None:
    (shop / "wrong.py").write_text("raise ValueError('no')\n")
    supervisor = start("run", "wrong", "--reload")
    supervisor.wait_for("ValueError: no (wrong.py:1)")
    supervisor.wait_for("waiting for a change")
    assert supervisor.end(signal.SIGINT) == 0
