"""Apps at work in a test, in its own event loop, on a log in a folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from everlog import App, Settings
from everlog.observe import Meters
from everlog.runtime import Ready, run_apps

PATIENCE_S = 30.0


def settings_in(folder: Path) -> Settings:
    return Settings(log_url=f"sqlite:{folder}/log.db", store_url=f"sqlite:{folder}/{{app}}.db")


@asynccontextmanager
async def running(*apps: App[Any], settings: Settings, meters: Meters | None = None) -> AsyncGenerator[None]:
    """Run apps until the end of the block."""
    to_come = len(apps)
    ready = asyncio.Event()

    def on_ready(_: Ready) -> None:
        nonlocal to_come
        to_come -= 1
        if not to_come:
            ready.set()

    work = asyncio.create_task(run_apps([app.declaration() for app in apps], settings, on_ready=on_ready, meters=meters))
    started = asyncio.create_task(ready.wait())
    try:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait([started, work], return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
        yield
    finally:
        started.cancel()
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work


async def until(is_true: Callable[[], bool]) -> None:
    """Wait for what comes by itself."""
    async with asyncio.timeout(PATIENCE_S):
        while not is_true():  # noqa: ASYNC110 what is waited for is in no event: it is seen from outside
            await asyncio.sleep(0.01)
