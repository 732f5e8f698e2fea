"""`everlog skipped`: the events that an app has passed over, and forgetting them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from everlog.cli.asking import PAGE, check_subscription
from everlog.cli.holding import place, print_event
from everlog.cli.options import AsJson, StoreUrl, Yes, confirm, existing_store, settings_from
from everlog.cli.parked import AppName, Subscription
from everlog.cli.records import cloud_event
from everlog.cli.terminal import JsonArray, ago, counted, iso_time, print_json, printable, screen
from everlog.clock import SystemClock
from everlog.errors import CommandRefused
from everlog.settings import Settings
from everlog.store import Skipped, Store

_SHOWN: Final = 100

app = typer.Typer(no_args_is_help=True, help="Look at events that were passed over: by on_error='skip', or by `parked skip`.")

Id = Annotated[int, typer.Argument(metavar="ID", help="Its number, as `skipped list` shows it.", show_default=False)]


@app.command("list")
def list_(
    app: AppName,
    subscription: Subscription = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", metavar="N", min=1, help="At most N events; 100 by default, and all with --json.", show_default=False
        ),
    ] = None,
    after: Annotated[int, typer.Option("--after", metavar="ID", min=0, help="Those behind this one.", show_default=False)] = 0,
    store_url: StoreUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show the events that were passed over, oldest first, each with its error."""
    settings = settings_from(store_url=store_url)
    if as_json:
        asyncio.run(_list_json(settings, app, subscription, after, limit))
    else:
        asyncio.run(_list(settings, app, subscription, after, limit or _SHOWN))


async def _list_json(settings: Settings, app: str, subscription: str | None, after: int, limit: int | None) -> None:
    async with existing_store(settings, app) as store:
        await check_subscription(store, subscription)
        with JsonArray() as array:
            async for page in _pages(store, subscription, after, limit):
                for one in page:
                    array.add(_shown(one))


async def _list(settings: Settings, app: str, subscription: str | None, after: int, limit: int) -> None:
    console, now_us = screen(), SystemClock().wall_us()
    last = shown = 0
    async with existing_store(settings, app) as store:
        await check_subscription(store, subscription)
        async for page in _pages(store, subscription, after, limit):
            for one in page:
                whose = "" if one.subscription == app else f"{one.subscription}: "
                head = (f"{one.id:>4}", "bold"), f"  {ago(one.skipped_at_us, now_us):>10}  {whose}{printable(one.record.type)}  "
                line = Text.assemble(*head, (printable(one.key), "bold"), f"  {place(one.record)}")
                error = Text(f"  {printable(one.error)}", style="dim")
                if console.is_terminal:
                    console.print(line, overflow="fold")
                    console.print(error, no_wrap=True, overflow="ellipsis")
                else:
                    console.print(line + error, no_wrap=True)
            last, shown = page[-1].id, shown + len(page)
        is_more = shown == limit and await store.skipped(subscription, after=last, limit=1)
    if is_more:
        console.print(f"and more: the next ones with --after {last}, or say --limit", soft_wrap=True)
    elif not shown:
        console.print(f"app {app!r} has passed nothing over" + (f" behind {after}" if after else ""), soft_wrap=True)


async def _pages(store: Store, subscription: str | None, after: int, limit: int | None) -> AsyncGenerator[Sequence[Skipped]]:
    left = limit
    while left is None or left > 0:
        page = await store.skipped(subscription, after=after, limit=PAGE if left is None else min(left, PAGE))
        if not page:
            return
        yield page
        after = page[-1].id
        left = None if left is None else left - len(page)


@app.command("show")
def show(app: AppName, number: Id, store_url: StoreUrl = None, as_json: AsJson = False) -> None:
    """Show an event that was passed over: envelope, data and error."""
    settings = settings_from(store_url=store_url)

    async def find() -> Skipped:
        async with existing_store(settings, app) as store:
            found = await store.skipped(after=number - 1, limit=1)
            if not found or found[0].id != number:
                raise CommandRefused(f"app {app!r} has no skipped event {number}: `everlog skipped list {app}` has them")
            return found[0]

    one = asyncio.run(find())
    if as_json:
        print_json(_shown(one))
        return
    head = {
        "number": str(one.id),
        "subscription": one.subscription,
        "key": printable(one.key),
        "skipped": ago(one.skipped_at_us, SystemClock().wall_us()),
    }
    print_event(head, one.record, printable(one.error))


@app.command("forget")
def forget(
    app: AppName,
    subscription: Subscription = None,
    through: Annotated[
        int | None, typer.Option("--through", metavar="ID", min=1, help="Up to this one; else all.", show_default=False)
    ] = None,
    store_url: StoreUrl = None,
    is_sure: Yes = False,
) -> None:
    """Delete the list of what was passed over, and the copies of these events. Asks first."""
    settings = settings_from(store_url=store_url)

    async def count() -> tuple[int, int]:
        number = last = 0
        async with existing_store(settings, app) as store:
            await check_subscription(store, subscription)
            async for page in _pages(store, subscription, 0, None):
                ids = [one.id for one in page if through is None or one.id <= through]
                if not ids:
                    break
                number, last = number + len(ids), ids[-1]
        return number, last

    number, last = asyncio.run(count())
    if not number:
        screen().print(f"app {app!r} has passed nothing over" + (f" up to {through}" if through else ""), soft_wrap=True)
        return
    whose = f"subscription {subscription!r} of app {app!r}" if subscription is not None else f"app {app!r}"
    confirm(
        f"Delete the copies of {counted(number, 'event')} that {whose} has passed over, up to number {last}, for ever?",
        is_sure=is_sure,
    )

    async def remove() -> int:
        async with existing_store(settings, app) as store:
            return await store.forget_skipped(subscription, through=last)

    screen().print(f"forgot {counted(asyncio.run(remove()), 'skipped event')}", soft_wrap=True)


def _shown(one: Skipped) -> dict[str, Any]:
    return {
        "id": one.id,
        "subscription": one.subscription,
        "key": one.key,
        "error": one.error,
        "skipped_at": iso_time(one.skipped_at_us),
        "event": cloud_event(one.record, position=None),
    }
