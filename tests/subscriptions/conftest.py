"""A world for a test, closed at its end."""

from __future__ import annotations

from collections.abc import AsyncIterator
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
