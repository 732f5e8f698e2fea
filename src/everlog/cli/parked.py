"""`everlog parked`: the keys that an app holds back, and what a person does about them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Final, NamedTuple

import typer

from everlog.cli import asking
from everlog.cli.asking import Target, Wanted
from everlog.cli.holding import KeyList, key_details, key_summary, print_key, why
from everlog.cli.options import AsJson, StoreUrl, Yes, confirm, existing_store, settings_from
from everlog.cli.redriving import carry_out, say_answers
from everlog.cli.terminal import JsonArray, print_json, printable, screen
from everlog.clock import SystemClock
from everlog.settings import Settings
from everlog.store import Held, ParkedKey, Slot, Store

_SHOWN: Final = 100
"""So many keys of a list are shown unless somebody asks for more."""
_ASKED_ABOUT: Final = 50
"""So many are named one by one in a question."""

app = typer.Typer(no_args_is_help=True, help="Look at keys that failed, try them again, or skip their first event.")

AppName = Annotated[str, typer.Argument(metavar="APP", help="The app's name.", show_default=False)]
Key = Annotated[str, typer.Argument(metavar="KEY", help="The key, as `parked list` shows it.", show_default=False)]
SomeKey = Annotated[
    str | None, typer.Argument(metavar="KEY", help="The key, as `parked list` shows it; or say which below.", show_default=False)
]
Subscription = Annotated[
    str | None, typer.Option("--subscription", metavar="NAME", help="Of this subscription only.", show_default=False)
]
TypeName = Annotated[
    str | None, typer.Option("--type", metavar="TYPE", help="Keys whose first event is of this type.", show_default=False)
]
ErrorText = Annotated[
    str | None, typer.Option("--error", metavar="TEXT", help="Keys whose error has this text in it.", show_default=False)
]
All = Annotated[bool, typer.Option("--all", help="Every parked key.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="File the request, and do not wait for what becomes of it.")]
WaitS = Annotated[
    float | None,
    typer.Option(
        "--wait-s",
        metavar="SECONDS",
        min=0,
        help="Wait no longer than this; exits with 6 if it was too short.",
        show_default=False,
    ),
]


@app.command("list")
def list_(  # noqa: PLR0913 one per flag
    app: AppName,
    subscription: Subscription = None,
    type_name: TypeName = None,
    error: ErrorText = None,
    key: Annotated[str | None, typer.Option("--key", metavar="KEY", help="This key only.", show_default=False)] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", metavar="N", min=1, help="At most N keys; 100 by default, and all with --json.", show_default=False
        ),
    ] = None,
    after: Annotated[int, typer.Option("--after", metavar="ID", min=0, help="Those behind this one.", show_default=False)] = 0,
    store_url: StoreUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show the keys that failed: until when they are blocked, or that they are parked, why, and how many events wait behind."""
    settings = settings_from(store_url=store_url)
    given = Wanted(subscription, key, type_name, error)
    if as_json:
        asyncio.run(_list_json(settings, app, given, after, limit))
    else:
        asyncio.run(_list(settings, app, given, after, limit or _SHOWN))


async def _list_json(settings: Settings, app: str, given: Wanted, after: int, limit: int | None) -> None:
    async with existing_store(settings, app) as store:
        wanted = await asking.spelled(store, app, given)
        with JsonArray() as array:
            async for page in asking.queues(store, wanted, after=after, limit=limit):
                for one in page:
                    array.add(key_summary(one))


async def _list(settings: Settings, app: str, given: Wanted, after: int, limit: int) -> None:
    console = screen()
    last = shown = 0
    async with existing_store(settings, app) as store:
        wanted = await asking.spelled(store, app, given)
        keys = KeyList(app, console, SystemClock().wall_us())
        async for page in asking.queues(store, wanted, after=after, limit=limit):
            keys.print(page)
            last, shown = page[-1].first.id, shown + len(page)
        is_more = shown == limit and [page async for page in asking.queues(store, wanted, after=last, limit=1)]
    if is_more:
        console.print(f"and more: the next ones with --after {last}, or say --limit", soft_wrap=True)
    elif not shown:
        which = "" if given == Wanted() and not after else " of what was asked for"
        console.print(f"app {app!r} holds nothing back{which}", soft_wrap=True)


@app.command("show")
def show(
    app: AppName,
    key: Key,
    subscription: Subscription = None,
    behind: Annotated[int, typer.Option("--behind", metavar="N", min=0, help="So many of the events behind it.")] = 20,
    store_url: StoreUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show the first event of a key's queue: envelope, data, error, traceback, and what waits behind it."""
    settings = settings_from(store_url=store_url)

    async def collect() -> list[tuple[ParkedKey, Sequence[Held]]]:
        async with existing_store(settings, app) as store:
            return [(one, await _behind(store, one, behind)) for one in await asking.named(store, app, key, subscription)]

    found = asyncio.run(collect())
    if as_json:
        print_json([key_details(*one) for one in found])
        return
    now_us = SystemClock().wall_us()
    for one in found:
        print_key(*one, now_us)


async def _behind(store: Store, key: ParkedKey, limit: int) -> Sequence[Held]:
    first = key.first
    return await store.held(Slot(first.subscription, first.slot), key.key, after=first.id, limit=limit) if limit else []


@app.command("redrive")
def redrive(  # noqa: PLR0913 one per flag
    app: AppName,
    key: SomeKey = None,
    is_all: All = False,
    type_name: TypeName = None,
    error: ErrorText = None,
    subscription: Subscription = None,
    store_url: StoreUrl = None,
    no_wait: NoWait = False,
    wait_s: WaitS = None,
) -> None:
    """Ask the running workers to try a key's queue again, from its first event, with all its attempts."""
    wanted = _wanted(key, type_name, error, subscription, is_all=is_all)
    settings = settings_from(store_url=store_url)

    async def collect() -> list[Target]:
        targets: list[Target] = []

        def take(page: Sequence[ParkedKey]) -> None:
            targets.extend([Target.of(one) for one in page])

        async with existing_store(settings, app) as store:
            await _each(store, app, wanted, take)
        return targets

    targets = asyncio.run(collect())
    if not targets:
        _say_none(app, wanted)
        return
    limit_s = 0.0 if no_wait else wait_s
    answered = asyncio.run(carry_out(settings, app, targets, "redrive", is_named=key is not None, wait_s=limit_s))
    say_answers(app, answered, "redrive")


@app.command("skip")
def skip(  # noqa: PLR0913 one per flag
    app: AppName,
    key: SomeKey = None,
    is_all: All = False,
    type_name: TypeName = None,
    error: ErrorText = None,
    subscription: Subscription = None,
    store_url: StoreUrl = None,
    is_sure: Yes = False,
    no_wait: NoWait = False,
    wait_s: WaitS = None,
) -> None:
    """Give up the first event of a key's queue for ever; those behind it go on. Shows what would be given up, and asks."""
    wanted = _wanted(key, type_name, error, subscription, is_all=is_all)
    settings = settings_from(store_url=store_url)

    async def collect() -> _Seen:
        seen = _Seen([], [], Counter())
        async with existing_store(settings, app) as store:
            await _each(store, app, wanted, seen.take)
        return seen

    seen = asyncio.run(collect())
    if not seen.targets:
        _say_none(app, wanted)
        return
    subscriptions = sorted({target.subscription for target in seen.targets})
    if key is not None and len(subscriptions) > 1:
        names = ", ".join(subscriptions)
        raise typer.BadParameter(f"key {printable(key)!r} is held by {names}: say which with --subscription")
    if not is_sure:
        seen.print(app, is_named=key is not None)
    confirm(seen.question(subscriptions), is_sure=is_sure)
    limit_s = 0.0 if no_wait else wait_s
    answered = asyncio.run(carry_out(settings, app, seen.targets, "skip", is_named=key is not None, wait_s=limit_s))
    say_answers(app, answered, "skip")


class _Seen(NamedTuple):
    """What a skip would pass over."""

    targets: list[Target]
    first: list[ParkedKey]
    """The first of them, to be named one by one."""
    kinds: Counter[tuple[str, str]]
    """How many there are of a type and a reason."""

    def take(self, page: Sequence[ParkedKey]) -> None:
        """Note a page of keys."""
        for one in page:
            self.targets.append(Target.of(one))
            self.kinds[one.first.record.type, why(one.first)] += 1
        self.first.extend(page[: _ASKED_ABOUT - len(self.first)])

    def print(self, app: str, *, is_named: bool) -> None:
        """Print one event in whole; of several a list, and how many there are of each kind where the list is not all."""
        console, now_us = screen(), SystemClock().wall_us()
        if is_named and len(self.targets) == 1:
            print_key(self.first[0], [], now_us)
            return
        KeyList(app, console, now_us).print(self.first)
        if len(self.targets) > len(self.first):
            console.print(f"and {len(self.targets) - len(self.first):,} more; in all:")
            for (kind, reason), count in self.kinds.most_common(_ASKED_ABOUT):
                console.print(f"{count:>9,}  {printable(kind)} {reason}", no_wrap=True, overflow="ellipsis")

    def question(self, subscriptions: Sequence[str]) -> str:
        """Return what to ask before they are skipped."""
        count, whose = len(self.targets), " and ".join([repr(name) for name in subscriptions])
        if count == 1:
            return f"Subscription {whose} will never handle this event. Skip it?"
        return f"Subscription {whose} will never handle the first event of each of these {count:,} keys. Skip {count:,} events?"


def _wanted(key: str | None, type_name: str | None, error: str | None, subscription: str | None, *, is_all: bool) -> Wanted:
    """Return what the arguments mean.

    Raises:
        BadParameter: They name nothing, or something and everything.
    """
    if is_all == any(one is not None for one in (key, type_name, error)):
        raise typer.BadParameter("expected a KEY, --type or --error, or else --all")
    return Wanted(subscription, key, type_name, error)


async def _each(store: Store, app: str, wanted: Wanted, take: Callable[[Sequence[ParkedKey]], None]) -> None:
    """Give `take` the keys that a request is for: a named one in any state, and of others those that are parked."""
    async for page in asking.queues(store, await asking.spelled(store, app, wanted)):
        take([one for one in page if wanted.key is not None or asking.is_parked(one)])


def _say_none(app: str, wanted: Wanted) -> None:
    which = "" if wanted == Wanted() else " that this is true of"
    screen().print(f"app {app!r} has no parked key{which}", soft_wrap=True)
