"""`everlog backup`: copies of the log and of stores that fit together, while apps run."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from everlog.cli.options import AsJson, LogUrl, StoreUrl, existing_log, existing_store, settings_from
from everlog.cli.terminal import print_json, screen, table
from everlog.errors import CommandRefused, FeatureMissing
from everlog.log import Log
from everlog.settings import Settings, resolve, shown
from everlog.store import Store

_LOG: Final = "log"
"""The copy's name, like the one that the default URL gives the log; a store's is its app's."""


class Copy(NamedTuple):
    """One file of a backup."""

    what: str
    source: str
    file: Path


class Job(NamedTuple):
    """What is to be copied."""

    copy: Copy
    port: Log | Store


def backup(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the copies go.", show_default=False)],
    apps: Annotated[
        list[str] | None, typer.Argument(metavar="APP", help="Apps whose stores are copied too.", show_default=False)
    ] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not read the copies again.")] = False,
    log_url: LogUrl = None,
    store_url: StoreUrl = None,
    as_json: AsJson = False,
) -> None:
    """Copy the log, and the stores of these apps, into a folder. Nobody has to stop. Replaces nothing."""
    settings = settings_from(log_url=log_url, store_url=store_url)
    copies = asyncio.run(_back_up(settings, folder.absolute(), list(dict.fromkeys(apps or [])), check=not no_verify))
    if as_json:
        print_json({"copies": [_shown(copy) for copy in copies], "verified": not no_verify})
        return
    made = table("copy of", "file", "bytes", right=("bytes",))
    for copy in copies:
        made.add_row(copy.what, str(copy.file), f"{copy.file.stat().st_size:,}")
    screen().print(made)


async def _back_up(settings: Settings, folder: Path, apps: Sequence[str], *, check: bool) -> list[Copy]:
    """Copy the stores and then the log, so that it is never older than the progress in a store. All of them, or none."""
    done: list[Copy] = []
    async with _opened(settings, folder, apps) as jobs:
        try:
            for copy, port in jobs:
                with _progress(copy.what) as progress:
                    await port.backup(copy.file, progress=progress, check=check)
                done.append(copy)
        except BaseException:
            for copy in done:
                with suppress(OSError):
                    copy.file.unlink()
            raise
    return done


@asynccontextmanager
async def _opened(settings: Settings, folder: Path, apps: Sequence[str]) -> AsyncGenerator[list[Job]]:
    """Open what is to be copied, in the order of the copying, and see that all of it can be.

    Raises:
        CommandRefused: Something is missing, or there already.
        FeatureMissing: The log or a store cannot be copied into a file.
    """
    if _LOG in apps:
        raise CommandRefused(
            f"the store of app {_LOG!r} and the log would have the same name: copy the store to a folder of its own"
        )
    async with AsyncExitStack() as stack:
        log = await stack.enter_async_context(existing_log(settings))
        jobs: list[Job] = []
        for app in apps:
            store = await stack.enter_async_context(existing_store(settings, app))
            url = shown(resolve(settings.store_url, app=app))
            jobs.append(Job(Copy(f"store of {app}", url, folder / f"{app}.db"), store))
        jobs.append(Job(Copy("log", shown(resolve(settings.log_url)), folder / f"{_LOG}.db"), log))
        for copy, port in jobs:
            if not port.features.backup:
                raise FeatureMissing("everlog backup", adapter=copy.source, instead="use the backup of that server")
            if copy.file.exists():
                raise CommandRefused(f"{copy.file} exists, and a backup replaces nothing: choose another folder, or move it away")
        yield jobs


@contextmanager
def _progress(what: str) -> Generator[Callable[[int, int], None] | None]:
    """Show a bar on stderr where somebody sees it; yields what to call with the bytes that are copied, and all."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=screen(stderr=True), transient=True) as bar:
        task = bar.add_task(f"copying {what}", total=None)

        def show(done: int, total: int) -> None:
            word = "checking" if done == total else "copying"
            bar.update(task, description=f"{word} {what}", completed=done, total=total)

        yield show


def _shown(copy: Copy) -> dict[str, Any]:
    return {"what": copy.what, "source": copy.source, "file": str(copy.file), "bytes": copy.file.stat().st_size}
