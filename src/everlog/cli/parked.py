"""`everlog parked`: the keys that an app holds back, and what a person does about them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.cells import cell_len
from rich.table import Table

from everlog.cli import asking
from everlog.cli.exits import USAGE
from everlog.cli.options import AsJson, StoreUrl, Yes, existing_store, settings_from
from everlog.cli.records import cloud_event
from everlog.cli.terminal import age, ago, counted, iso_time, print_json, printable, screen, table
from everlog.clock import SystemClock
from everlog.errors import CommandRefused
from everlog.store import Cause, ParkedKey

_ERROR_COLUMNS: Final = 16
"""So much of an error is shown in any case."""

app = typer.Typer(no_args_is_help=True, help="Look at keys that failed, try them again, or skip their first event.")

AppName = Annotated[str, typer.Argument(metavar="APP", help="The app's name.", show_default=False)]
Key = Annotated[str, typer.Argument(metavar="KEY", help="The key, as `parked list` shows it.", show_default=False)]
Subscription = Annotated[
    str | None, typer.Option("--subscription", metavar="NAME", help="Of this subscription only.", show_default=False)
]
WaitS = Annotated[float, typer.Option("--wait-s", metavar="SECONDS", min=0, help="How long to wait for a running worker.")]


@app.command("list")
def list_(app: AppName, subscription: Subscription = None, store_url: StoreUrl = None, as_json: AsJson = False) -> None:
    """Show the keys that failed: until when they are blocked, or that they are parked, and why."""
    settings = settings_from(store_url=store_url)

    async def collect() -> Sequence[ParkedKey]:
        async with existing_store(settings, app) as store:
            return await asking.held_keys(store, subscription)

    found = asyncio.run(collect())
    if as_json:
        print_json([_summary(key) for key in found])
        return
    console, now_us = screen(), SystemClock().wall_us()
    if not found:
        console.print(f"app {app!r} holds nothing back")
        return
    rows = [
        (
            key.subscription,
            printable(key.key),
            _state(key, now_us),
            f"{key.records:,}",
            str(key.first.attempts),
            printable(key.first.error),
        )
        for key in found
    ]
    console.print(listed_table(rows, console.width))


def listed_table(rows: Sequence[tuple[str, ...]], width: int) -> Table:
    """Return the table of keys: a line each, the error cut to what is left. Only where nothing is left, long keys are folded."""
    made = table("subscription", "key", "state", "events", "attempts", "error", right=("events", "attempts"))
    for row in rows:
        made.add_row(*row)
    *others, error = made.columns
    taken = sum(
        [
            max(map(cell_len, (str(column.header), *texts))) + 2
            for column, texts in zip(others, zip(*rows, strict=True), strict=False)
        ]
    )
    for column in made.columns:
        column.no_wrap = column.header != "key"
    error.overflow = "ellipsis"
    error.max_width = max(_ERROR_COLUMNS, width - taken)
    return made


def _state(key: ParkedKey, now_us: int) -> str:
    due_us = key.first.next_attempt_us
    if due_us is None:
        return "next in its queue" if key.first.cause is Cause.BEHIND else "parked"
    return f"blocked, next in {age((due_us - now_us) / 1e6)}" if due_us > now_us else "blocked, due now"


def _summary(key: ParkedKey) -> dict[str, Any]:
    first = key.first
    due = iso_time(first.next_attempt_us) if first.next_attempt_us is not None else None
    return {
        "subscription": key.subscription,
        "key": key.key,
        "state": "blocked" if due is not None or first.cause is Cause.BEHIND else "parked",
        "next_attempt_at": due,
        "events": key.records,
        "attempts": first.attempts,
        "cause": first.cause.value,
        "error": first.error,
        "held_at": iso_time(first.held_at_us),
    }


@app.command("show")
def show(app: AppName, key: Key, subscription: Subscription = None, store_url: StoreUrl = None, as_json: AsJson = False) -> None:
    """Show the first event of a key's queue: envelope, data, error, traceback, and how many wait behind it."""
    settings = settings_from(store_url=store_url)

    async def collect() -> Sequence[ParkedKey]:
        async with existing_store(settings, app) as store:
            return await asking.named(store, app, key, subscription)

    found = asyncio.run(collect())
    if as_json:
        print_json(
            [
                _summary(one) | {"traceback": one.first.trace, "event": cloud_event(one.first.record, position=None)}
                for one in found
            ]
        )
        return
    for one in found:
        _print_whole(one)


def _print_whole(key: ParkedKey) -> None:
    first, record, now_us = key.first, key.first.record, SystemClock().wall_us()
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    rows = {
        "subscription": key.subscription,
        "key": printable(key.key),
        "state": f"{_state(key, now_us)} after {counted(first.attempts, 'attempt')}, held {ago(first.held_at_us, now_us)}",
        "behind it": f"{counted(key.records - 1, 'event')} of this key",
        "event": f"{record.topic}/{record.partition}@{record.offset}",
        "type": printable(record.type),
        "id": printable(record.id),
        "source": printable(record.source),
        "time": iso_time(record.time_us),
        "logged at": iso_time(record.logged_at_us),
        **{f"header {name}": printable(value) for name, value in record.headers.items()},
        "error": printable(first.error),
    }
    for name, value in rows.items():
        grid.add_row(name, value)
    console = screen()
    console.print(grid)
    console.print("data", style="bold")
    console.print(_pretty(record.data), soft_wrap=True)
    if first.trace:
        console.print("traceback", style="bold")
        console.print("\n".join([printable(line) for line in first.trace.splitlines()]), soft_wrap=True)


def _pretty(data: bytes) -> str:
    try:
        text = msgspec.json.format(data, indent=2).decode()
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = repr(data)
    return "\n".join([printable(line) for line in text.splitlines()])


@app.command("redrive")
def redrive(
    app: AppName,
    key: Annotated[
        str | None, typer.Argument(metavar="KEY", help="The key; leave it out with --all.", show_default=False)
    ] = None,
    is_all: Annotated[bool, typer.Option("--all", help="Every parked key.")] = False,
    subscription: Subscription = None,
    store_url: StoreUrl = None,
    wait_s: WaitS = 5.0,
) -> None:
    """Ask the running worker to try a key's queue again, from its first event, with all its attempts."""
    if (key is None) != is_all:
        _usage("expected a KEY or --all, and not both")
    settings = settings_from(store_url=store_url)

    async def ask() -> asking.Answers:
        async with existing_store(settings, app) as store:
            keys = (
                await asking.parked_keys(store, subscription)
                if key is None
                else await asking.named(store, app, key, subscription)
            )
            return await asking.ask(store, keys, "redrive", wait_s=wait_s)

    answers = asyncio.run(ask())
    console = screen()
    if not answers.asked:
        console.print(f"app {app!r} has no parked key")
        return
    console.print(f"asked for {counted(answers.asked, 'key')}: a running worker of {app!r} tries them again", soft_wrap=True)
    _say("handled", answers.done)
    _say("being handled", answers.running)
    for one in answers.failed:
        console.print(f"failed again: {printable(one.key)}: {printable(one.first.error)}", soft_wrap=True)
    _say_waiting(answers, wait_s)


@app.command("skip")
def skip(
    app: AppName,
    key: Key,
    subscription: Subscription = None,
    store_url: StoreUrl = None,
    is_sure: Yes = False,
    wait_s: WaitS = 5.0,
) -> None:
    """Give up the first event of a key's queue for ever; those behind it go on."""
    settings = settings_from(store_url=store_url)

    async def collect() -> Sequence[ParkedKey]:
        async with existing_store(settings, app) as store:
            return await asking.named(store, app, key, subscription)

    found = asyncio.run(collect())
    if len(found) > 1:
        _usage(f"key {key!r} is held by {', '.join([one.subscription for one in found])}: say which with --subscription")
    seen = found[0]
    if not is_sure:
        _print_whole(seen)
        typer.confirm(f"Subscription {seen.subscription!r} will never handle this event. Skip it?", abort=True, err=True)

    async def ask() -> asking.Answers:
        async with existing_store(settings, app) as store:
            now = await asking.named(store, app, key, seen.subscription)
            if now[0].first.id != seen.first.id:
                raise CommandRefused(
                    f"key {key!r} has another first event now: nothing was skipped; look at it with `everlog parked show`"
                )
            return await asking.ask(store, now, "skip", wait_s=wait_s)

    answers = asyncio.run(ask())
    if answers.waiting:
        _say_waiting(answers, wait_s)
    else:
        screen().print(f"skipped; {counted(seen.records - 1, 'event')} of the key go on")


def _say(what: str, keys: Sequence[str]) -> None:
    if keys:
        shown = ", ".join([printable(key) for key in keys[:10]]) + (f" and {len(keys) - 10:,} more" if len(keys) > 10 else "")
        screen().print(f"{what}: {shown}", soft_wrap=True)


def _say_waiting(answers: asking.Answers, wait_s: float) -> None:
    if answers.waiting:
        message = f"no worker has answered for {counted(len(answers.waiting), 'key')} within {wait_s:g} s: the request stays, and the next run carries it out"
        screen().print(message, soft_wrap=True)


def _usage(message: str) -> None:
    print(f"everlog: {message}", file=sys.stderr)
    raise typer.Exit(USAGE)
