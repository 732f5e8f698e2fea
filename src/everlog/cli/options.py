"""The options that several commands share, and the settings and the log or store that they stand for."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from everlog.clock import SystemClock
from everlog.errors import CommandRefused, FilePlace
from everlog.log import Log
from everlog.settings import Settings, is_absent, open_log, open_store, resolve, shown
from everlog.store import Store

LogUrl = Annotated[str | None, typer.Option("--log-url", metavar="URL", help="Where the log is.", show_default=False)]
StoreUrl = Annotated[
    str | None,
    typer.Option("--store-url", metavar="URL", help="Where the store is; {app} stands for the app's name.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
NoCreateTopics = Annotated[bool, typer.Option("--no-create-topics", help="A missing topic is an error.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]

_SQLITE: Final = "sqlite:"


def settings_from(
    *,
    log_url: str | None = None,
    store_url: str | None = None,
    lease_s: float | None = None,
    grace_s: float | None = None,
    new_types: str | None = None,
    no_create_topics: bool = False,
    accept_new_store: bool = False,
) -> Settings:
    """Return what flags say, or else the environment, or else the code. ``None`` and ``False`` stand for a flag that was not given.

    Raises:
        StartRefused: A value is none that its setting can have.
    """
    given: dict[str, object] = {
        "log_url": log_url,
        "store_url": store_url,
        "lease_s": lease_s,
        "grace_s": grace_s,
        "new_types": new_types,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if no_create_topics:
        changes["create_topics"] = False
    if accept_new_store:
        changes["accept_new_store"] = True
    # Mypy cannot see which field each value belongs to; `Settings` checks what they hold.
    return dataclasses.replace(Settings().from_env(), **changes)  # type: ignore[arg-type]


def confirm(question: str, *, is_sure: bool) -> None:
    """Ask, and go on only with a yes. Where nobody can be asked, only a flag is one.

    Raises:
        CommandRefused: Nobody can be asked, and `--yes` was not given.
        Abort: The answer is no.
    """
    if is_sure:
        return
    if not sys.stdin.isatty():
        raise CommandRefused(
            "nothing was changed: this asks first, and stdin is no terminal; look at what it would do, and say --yes"
        )
    typer.confirm(question, abort=True, err=True)


@asynccontextmanager
async def existing_log(settings: Settings) -> AsyncGenerator[Log]:
    """Open the log, which must exist already: looking at a log makes none.

    Raises:
        CommandRefused: There is none, or only the process that made it can see it.
    """
    url = resolve(settings.log_url)
    await _refuse_missing(
        "log", url, f"there is no log at {shown(url)}: publish an event, run an app, or say where it is with --log-url"
    )
    log = await open_log(settings, clock=SystemClock())
    try:
        check_shared(log, url)
        yield log
    finally:
        await log.aclose()


def check_shared(log: Log, url: str) -> None:
    """Refuse a log that lives and dies with this process.

    Raises:
        CommandRefused: It is one.
    """
    if not log.features.shared:
        raise CommandRefused(f"the log {shown(url)} lives in one process, and this is another: say where to look with --log-url")


@asynccontextmanager
async def existing_store(settings: Settings, app: str, *, named: str = "") -> AsyncGenerator[Store]:
    """Open the store of an app, which must exist already and be the app's.

    Args:
        settings: Where it is.
        app: Whose.
        named: What the user calls it, where that is not where it is opened.

    Raises:
        CommandRefused: There is none, or it belongs to another app.
    """
    url = resolve(settings.store_url, app=app)
    await _refuse_missing(
        "store", url, f"app {app!r} has no store at {shown(url)}: run it first, or say where its store is with --store-url"
    )
    store = await open_store(settings, app, clock=SystemClock())
    try:
        owner = (await store.status()).app
        if owner != app:
            raise CommandRefused(
                f"the store {named or shown(url)} belongs to app {owner!r}, and this command names {app!r}: give the store of {app!r}, or "
                f"name {owner!r}"
            )
        yield store
    finally:
        await store.aclose()


async def _refuse_missing(port: str, url: str, message: str) -> None:
    place = url.removeprefix(_SQLITE)
    # What is missing would be made by opening it; `:memory:` is a new and empty one each time.
    is_there = not await is_absent(port, url) if place == url else _is_there(Path(place))
    if not is_there:
        raise CommandRefused(message)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise FilePlace(f"{path}: {error.strerror}: run this as its owner, or say where it is with a URL") from error
