"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder in which the search for `.everlog/` ends, and no setting of the caller's environment.

    `pyproject.toml` stops the search upwards, so that no test finds the events of the person who runs it.
    """
    for name in list(os.environ):
        if name.startswith("EVERLOG_") and name != "EVERLOG_REQUIRE_SERVERS":
            monkeypatch.delenv(name)
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path
