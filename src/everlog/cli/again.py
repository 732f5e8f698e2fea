"""`everlog replay` and `everlog rewind`: handling events again, over state that begins empty or over that of today."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Any, Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from everlog.app import App
from everlog.cli.modules import apps_of, chosen
from everlog.cli.options import AsJson, LogUrl, StoreUrl, Yes, confirm, existing_log, existing_store, settings_from
from everlog.cli.rehearsing import Wanted, rehearse_replay
from everlog.cli.repetition import emptying, plan_of
from everlog.cli.terminal import counted, screen
from everlog.clock import SystemClock
from everlog.errors import CommandRefused
from everlog.settings import Settings
from everlog.store import Store, SubscriptionStatus
from everlog.subscriptions.declaration import SubscriptionDeclaration
from everlog.subscriptions.mending import tell
from everlog.subscriptions.repeating import From, Repetition, events_left, plan_repetition

_LOOK_EVERY_S: Final = 0.5
_BAR_CELLS: Final = 30

AppReference = Annotated[
    str, typer.Argument(metavar="MODULE:APP", help="The app; MODULE alone where it has one.", show_default=False)
]
SubscriptionName = Annotated[
    str | None,
    typer.Option("--subscription", metavar="NAME", help="Which one, where the app has several.", show_default=False),
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Do not show how far it is.")]


def replay(  # noqa: PLR0913 one per flag
    app: AppReference,
    subscription: SubscriptionName = None,
    start: Annotated[
        str, typer.Option("--from", metavar="WHERE", help="beginning, or a time like 2026-11-23T10:00.")
    ] = "beginning",
    keep_state: Annotated[bool, typer.Option("--keep-state", help="Begin with the state of today.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Replay on a copy of the store, and show what would be different. Changes nothing.")
    ] = False,
    most: Annotated[int, typer.Option("--show", metavar="N", min=0, help="With --dry-run: how many differences of a kind.")] = 20,
    as_json: AsJson = False,
    no_wait: NoWait = False,
    log_url: LogUrl = None,
    store_url: StoreUrl = None,
    is_sure: Yes = False,
) -> None:
    """Rebuild what a subscription remembers: handle its events again over empty state, and publish nothing twice. Shows a plan, and asks."""
    settings = settings_from(log_url=log_url, store_url=store_url)
    declaration = _declared(app, subscription)
    if dry_run:
        wanted = Wanted(_from(start), keep_state, most, as_json)
        asyncio.run(rehearse_replay(settings, apps_of([app])[0].declaration(), declaration, wanted, is_sure=is_sure))
        return
    if as_json:
        raise typer.BadParameter("it is for --dry-run", param_hint="--json")
    asyncio.run(
        _again(settings, declaration, _from(start), rebuilds=True, keep_state=keep_state, is_sure=is_sure, waits=not no_wait)
    )


def rewind(
    app: AppReference,
    start: Annotated[
        str, typer.Option("--from", metavar="WHERE", help="beginning, or a time like 2026-11-23T10:00.", show_default=False)
    ],
    subscription: SubscriptionName = None,
    no_wait: NoWait = False,
    log_url: LogUrl = None,
    store_url: StoreUrl = None,
    is_sure: Yes = False,
) -> None:
    """Do events once more: over the state of today, and everything that the handlers publish is published again. Shows a plan, and asks."""
    settings = settings_from(log_url=log_url, store_url=store_url)
    declaration = _declared(app, subscription)
    asyncio.run(_again(settings, declaration, _from(start), rebuilds=False, keep_state=False, is_sure=is_sure, waits=not no_wait))


def _declared(reference: str, name: str | None) -> SubscriptionDeclaration:
    """Return the subscription that a command line names.

    Raises:
        CommandRefused: There is none of that name, or there are several and none was named.
    """
    app: App[Any] = apps_of([reference])[0]
    found = {one.name: one for one in app.declaration().subscriptions}
    if name is not None:
        return found[chosen(name, list(found), what="subscription", where=f"app {app.name!r}")]
    if len(found) > 1:
        raise CommandRefused(f"app {app.name!r} has the subscriptions {', '.join(sorted(found))}: say which with --subscription")
    return next(iter(found.values()))


def _from(text: str) -> From:
    if text == "beginning":
        return "beginning"
    try:
        return datetime.fromisoformat(text).astimezone()  # without a zone it is the time here
    except ValueError as error:
        raise typer.BadParameter(
            f"expected beginning or a time like 2026-11-23T10:00, found {text!r}", param_hint="--from"
        ) from error


async def _again(
    settings: Settings,
    declaration: SubscriptionDeclaration,
    start: From,
    *,
    rebuilds: bool,
    keep_state: bool,
    is_sure: bool,
    waits: bool,
) -> None:
    async with existing_log(settings) as log, existing_store(settings, declaration.app) as store:
        plan = await plan_repetition(log, store, declaration, start, rebuilds=rebuilds, keep_state=keep_state)
        workers = len((await store.survey(declaration.name)).members)
        for line in plan_of(declaration, plan, workers):
            _say(line)
        if plan.grown and workers:
            raise CommandRefused(
                f"{counted(workers, 'worker')} with code that does not know {', '.join(plan.grown)} work on subscription {declaration.name!r} and would "
                f"pass these by again: stop them first. Nothing was changed"
            )
        if not plan.events and not plan.grown:
            _say("nothing was changed")
            return
        question = "Begin the replay?" if rebuilds else "Handle and publish all of that once more?"
        confirm(question, is_sure=is_sure)
        generation = await store.start_again(plan.again, emptying(declaration) if rebuilds else None)
        await tell(declaration.app, log, store, SystemClock())  # else the log says that it had come further
        _say(f"generation {generation} of subscription {declaration.name!r} has begun" if rebuilds else "it has begun")
        if not workers:
            _say(f"no worker is running: it goes on with the next `everlog run` of app {declaration.app!r}")
        elif waits:
            await _follow(store, declaration, plan)


async def _follow(store: Store, declaration: SubscriptionDeclaration, plan: Repetition) -> None:
    """Show how far it is until all is handled; Ctrl-C ends the showing, and nothing else."""
    columns = (TextColumn("handling"), BarColumn(_BAR_CELLS), MofNCompleteColumn(), TimeRemainingColumn())
    console = screen(stderr=True)
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=plan.events)
            while True:
                now = await _status(store, declaration.name)
                left = events_left(plan, now)
                bar.update(task, completed=max(0, plan.events - left))
                if not left:
                    break
                if not (await store.survey(declaration.name)).members:
                    _say(f"its workers have stopped: it goes on with the next `everlog run` of app {declaration.app!r}")
                    return
                await store.wait(_LOOK_EVERY_S)
    except asyncio.CancelledError:
        _say("it goes on without being shown: `everlog status` says how far it is")
        return
    held = f"; {counted(now.held_records, 'event')} are held (everlog parked)" if now.held_records else ""
    _say(f"all {plan.events:,} are handled{held}")


async def _status(store: Store, name: str) -> SubscriptionStatus:
    return next(one for one in (await store.status()).subscriptions if one.name == name)


def _say(line: str) -> None:
    screen().print(line, soft_wrap=True, markup=False, highlight=False)
