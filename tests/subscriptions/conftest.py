"""A world for a test, closed at its end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.subscriptions.world import Make, World, make_world

from everlog import App


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """Return a function that makes a world of an app."""
    worlds: list[World] = []

    async def make(app: App[Any], **options: Any) -> World:
        made = await make_world(app, monkeypatch, **options)
        worlds.append(made)
        return made

    yield make
    for one in worlds:
        await one.aclose()


@pytest.fixture(params=["memory", "file"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """Return where the files of a world are, and once ``None``: in memory."""
    return tmp_path if request.param == "file" else None
