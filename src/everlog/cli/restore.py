"""`everlog restore`: putting a backup back, and bringing a log and a store together of which one is older than the other."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from everlog.cli.options import LogUrl, StoreUrl, Yes, confirm, existing_log, existing_store, settings_from
from everlog.cli.plans import lost_events, plan_lines
from everlog.cli.terminal import printable, screen
from everlog.clock import SystemClock, to_datetime
from everlog.errors import CommandRefused, EverlogError, FeatureMissing, FileDamaged
from everlog.log import Log
from everlog.settings import Settings, open_log, resolve, shown
from everlog.store import Store
from everlog.subscriptions.mending import Begin, Plan, make_plan, mend, tell

if TYPE_CHECKING:
    from everlog.drivers.sqlite.replace import Replacement

_SQLITE: Final = "sqlite:"


def restore(
    app: Annotated[
        str | None, typer.Argument(metavar="APP", help="The app whose store it is; without it, the log.", show_default=False)
    ] = None,
    backup: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="The backup to put in its place first.", show_default=False),
    ] = None,
    begin: Annotated[
        str,
        typer.Option(
            "--begin",
            metavar="WHERE",
            help="Where an app begins whose store was lost: first (its state is built again), or reported.",
        ),
    ] = "first",
    log_url: LogUrl = None,
    store_url: StoreUrl = None,
    is_sure: Yes = False,
) -> None:
    """Put a backup of the log or a store back, and let an app go on that was refused since one of them is older. Shows a plan, and asks."""
    settings = settings_from(log_url=log_url, store_url=store_url)
    where = _begin(begin)
    if app is None:
        if backup is None:
            raise typer.BadParameter("expected the APP that is to go on, or a backup of the log to put back (--from FILE)")
        asyncio.run(_restore_log(settings, backup.absolute(), is_sure=is_sure))
    elif backup is None:
        asyncio.run(_go_on(settings, app, where, is_sure=is_sure))
    else:
        asyncio.run(_restore_store(settings, app, backup.absolute(), is_sure=is_sure))


def _begin(text: str) -> Begin:
    if text == "first":
        return "first"
    if text == "reported":
        return "reported"
    raise typer.BadParameter(f"expected first or reported, found {text!r}", param_hint="--begin")


async def _go_on(settings: Settings, app: str, begin: Begin, *, is_sure: bool) -> None:
    """Bring the store that an app has and the log together."""
    _refuse_used(resolve(settings.store_url, app=app))
    async with existing_log(settings) as log, existing_store(settings, app) as store:
        plan = await _plan(app, log, store, begin)
        if not plan.is_needed:
            _say(f"the store of app {app!r} and the log fit together: nothing was changed")
            return
        _show(app, plan)
        confirm(f"Let app {app!r} go on so?", is_sure=is_sure)
        await mend(app, log, store, plan, SystemClock())
    _say(f"app {app!r} can be run: its store is incarnation {plan.incarnation} now")


def _refuse_used(url: str) -> None:
    from everlog.drivers.sqlite.replace import check_unused  # SQLite is loaded by who needs it, and not with every command

    place = url.removeprefix(_SQLITE)
    if place != url and Path(place).exists():
        check_unused(Path(place).absolute())


async def _restore_store(settings: Settings, app: str, backup: Path, *, is_sure: bool) -> None:
    """Put a backup in the place of an app's store, brought together with the log before."""
    from everlog.drivers.sqlite.replace import prepared
    from everlog.stores.sqlite.tables import STORE

    path, clock = _file(settings.store_url, app), SystemClock()
    with prepared(path, STORE, backup) as replacement:
        copied = dataclasses.replace(settings, store_url=f"{_SQLITE}{replacement.copy}")
        async with existing_log(settings) as log, existing_store(copied, app, named=str(backup)) as store:
            _refuse_damaged(await store.verify(), backup)
            plan = await _plan(app, log, store)
            _say(_place_line(backup, path))
            _show(app, plan)
            confirm(f"Put the store of app {app!r} back so?", is_sure=is_sure)
            if plan.is_needed:
                await mend(app, log, store, plan, clock)
            else:
                await tell(app, log, store, clock)
        _put(replacement)
    _say(f"app {app!r} can be run")


async def _restore_log(settings: Settings, backup: Path, *, is_sure: bool) -> None:
    """Put a backup in the place of the log."""
    from everlog.drivers.sqlite.replace import prepared
    from everlog.logs.sqlite.tables import LOG

    path = _file(settings.log_url, "")
    with prepared(path, LOG, backup) as replacement:
        async with _opened(settings, replacement.copy) as copy:
            _refuse_damaged(await copy.verify(), backup)
            _say(_place_line(backup, path))
            for line in await _lost(settings, path, copy):
                _say(line)
        confirm("Put the log back so?", is_sure=is_sure)
        _put(replacement)
    _say(
        "run the apps: one whose store knows more than the log is refused, and `everlog restore APP` shows what going on would mean"
    )


def _place_line(backup: Path, path: Path) -> str:
    """Say where the backup is put, and what becomes of what is there."""
    return (
        f"{backup} takes the place of {path}, which is moved aside"
        if path.exists()
        else f"{backup} is put at {path}, where nothing is"
    )


def _file(url: str, app: str) -> Path:
    """Return the file that a URL names.

    Raises:
        FeatureMissing: It names none.
    """
    found = resolve(url, app=app)
    place = found.removeprefix(_SQLITE)
    if place in (found, ":memory:"):
        raise FeatureMissing("everlog restore --from", adapter=shown(found), instead="restore it with the means of that server")
    return Path(place).absolute()


@asynccontextmanager
async def _opened(settings: Settings, path: Path) -> AsyncGenerator[Log]:
    log = await open_log(dataclasses.replace(settings, log_url=f"{_SQLITE}{path}"), clock=SystemClock())
    try:
        yield log
    finally:
        await log.aclose()


async def _lost(settings: Settings, path: Path, copy: Log) -> list[str]:
    """Return what the log holds that its backup does not, a line each; all of it where it is another log, made after this one was lost."""
    if _is_missing(path):
        return ["there is no log now, so that nobody can say what came after the backup"]
    try:
        async with _opened(settings, path) as log:
            lines = await lost_events(log, copy)
            if log.identity != copy.identity:
                return [
                    f"IT IS ANOTHER LOG: the backup is of {copy.identity}, and {path} is {log.identity}, of which all will be gone",
                    *lines,
                ]
            return lines
    except EverlogError as error:
        return [f"the log cannot be read, so that nobody can say what came after the backup: {error}"]


def _is_missing(path: Path) -> bool:
    return not path.exists()


async def _plan(app: str, log: Log, store: Store, begin: Begin = "first") -> Plan:
    """Compare log and store.

    Raises:
        CommandRefused: The store belongs to another log.
    """
    total = 0
    for topic in await log.topics():
        first = await log.first(topic.name)
        total += (await log.backlog(topic.name, {where.partition: offset for where, offset in first.offsets.items()})).count
    with _progress(total) as advance:
        plan = await make_plan(app, log, store, advance, begin=begin)
    if plan.fit.log is not None:
        raise CommandRefused(
            f"the store of app {app!r} belongs to log {plan.fit.log}, and this log is {log.identity}: nothing in one says anything about the "
            f"other. Give the log that it was used with (--log-url), put its backup back (everlog restore --from FILE), or begin with a new "
            f"store (--store-url)"
        )
    return plan


def _refuse_damaged(lines: object, backup: Path) -> None:
    if lines:
        raise FileDamaged(f"{backup} is damaged: nothing was changed; take another backup. What was found: {lines}")


def _put(replacement: Replacement) -> None:
    from everlog.drivers.sqlite.replace import put_in_place

    moment = to_datetime(SystemClock().wall_us()).strftime("%Y%m%dT%H%M%S.%f")
    for moved in put_in_place(replacement, f"before-{moment}"):
        _say(f"the old file is {moved} now")


def _show(app: str, plan: Plan) -> None:
    for line in plan_lines(app, plan):
        _say(line)


def _say(line: str) -> None:
    screen().print(printable(line), soft_wrap=True)


@contextmanager
def _progress(total: int) -> Generator[Callable[[int], None]]:
    """Show a bar on stderr where somebody sees it; yields what to call with the number of records read."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    columns = (TextColumn("comparing"), BarColumn(), MofNCompleteColumn(), TextColumn("events"), TimeRemainingColumn())
    with Progress(*columns, console=screen(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)
