"""`everlog migrate`: the tables of a log and of stores on a server, made or brought to the version of this Everlog."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

import typer

from everlog.cli.options import LogUrl, StoreUrl, settings_from
from everlog.cli.terminal import screen
from everlog.settings import Settings, migrate_log, migrate_store, resolve, shown


def migrate(
    apps: Annotated[
        list[str] | None, typer.Argument(metavar="[APP]...", help="Whose stores, by name.", show_default=False)
    ] = None,
    log_url: LogUrl = None,
    store_url: StoreUrl = None,
) -> None:
    """Bring the tables of the log, and of the stores of some apps, to the version of this Everlog; make them where they are missing."""
    settings = settings_from(log_url=log_url, store_url=store_url)
    asyncio.run(_migrate(settings, apps or []))


async def _migrate(settings: Settings, apps: Sequence[str]) -> None:
    _say(f"the log at {shown(resolve(settings.log_url))}", await migrate_log(settings))
    for app in apps:
        _say(f"the store of {app} at {shown(resolve(settings.store_url, app=app))}", await migrate_store(settings, app))


def _say(what: str, reached: Sequence[int] | None) -> None:
    if reached is None:
        found = "is a file or in memory, which `run` looks after"
    elif reached:
        found = f"has version {reached[-1]} now"
    else:
        found = "was up to date"
    screen().print(f"{what} {found}", soft_wrap=True)
