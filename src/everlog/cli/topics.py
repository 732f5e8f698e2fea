"""`everlog topics`: what the log holds and for how long, and changing that."""

from __future__ import annotations

import asyncio
from collections.abc import Set as AbstractSet
from datetime import timedelta
from typing import Annotated, Any, NamedTuple

import msgspec
import typer

from everlog.cli.limits import parse_age_s, parse_bytes, shown_limits
from everlog.cli.modules import chosen
from everlog.cli.options import AsJson, LogUrl, Yes, confirm, existing_log, settings_from
from everlog.cli.terminal import ago, counted, iso_time, print_json, screen, table
from everlog.clock import SystemClock, to_datetime, to_us
from everlog.errors import CommandRefused
from everlog.log import Backlog, Log, TopicSpec
from everlog.position import Offset
from everlog.settings import Settings, resolve, shown
from everlog.subscriptions.report import read_reports

_PRECISION: timedelta = timedelta(milliseconds=1)
_OWN = "everlog."

app = typer.Typer(invoke_without_command=True, help="Show the topics, or change how long one keeps its events.")


class TopicShown(msgspec.Struct):
    """What is printed of a topic."""

    name: str
    partitions: int
    key: str | None
    types: list[str]
    events: int
    oldest: str | None
    newest: str | None
    keep_s: float | None
    keep_bytes: int | None
    keep_newest: bool
    gone_through: str | None
    """When the newest event that was deleted was logged."""


class _Found(NamedTuple):
    """What the log says of a topic."""

    spec: TopicSpec
    kept: Backlog
    newest_us: int | None
    gone_us: int | None


@app.callback()
def topics(context: typer.Context, log_url: LogUrl = None, as_json: AsJson = False) -> None:
    """Show the topics: partitions, key, types, how many events, and from when; what is kept, and what was deleted."""
    if context.invoked_subcommand is not None:
        if log_url is not None or as_json:
            raise typer.BadParameter(f"give the options of `topics {context.invoked_subcommand}` behind its name")
        return
    settings = settings_from(log_url=log_url)
    found = asyncio.run(_found(settings))
    if as_json:
        print_json([_shown(one) for one in found])
        return
    console, now_us = screen(), SystemClock().wall_us()
    if not found:
        console.print(
            f"{shown(resolve(settings.log_url))} has no topics yet: the first event, or the first run of an app, makes them"
        )
        return
    made = table("topic", "partitions", "key", "events", "oldest", "newest", right=("partitions", "events", "oldest", "newest"))
    for spec, kept, newest_us, gone_us in found:
        lines = [spec.name, *spec.types]
        if spec.keep_s is not None or spec.keep_bytes is not None:
            lines.append(
                f"keeps {shown_limits(spec.keep_s, spec.keep_bytes)}" + (", and each key's newest" if spec.keep_newest else "")
            )
        if gone_us is not None:
            lines.append(f"deleted up to {ago(gone_us, now_us)}")
        oldest = ago(kept.oldest_us, now_us) if kept.oldest_us is not None else "–"
        newest = ago(newest_us, now_us) if newest_us is not None else "–"
        made.add_row("\n  ".join(lines), str(spec.partitions), spec.key or "–", f"{kept.count:,}", oldest, newest)
    console.print(made)


async def _found(settings: Settings) -> list[_Found]:
    async with existing_log(settings) as log:
        found: list[_Found] = []
        for spec in await log.topics():
            first = await log.first(spec.name)
            kept = await log.backlog(spec.name, {where.partition: offset for where, offset in first.offsets.items()})
            newest_us = None if kept.oldest_us is None else await _newest_us(log, spec.name, kept.oldest_us)
            gone = await log.gone_through(spec.name)
            found.append(_Found(spec, kept, newest_us, max(gone.values(), default=None)))
        return found


def _shown(found: _Found) -> TopicShown:
    spec, kept, newest_us, gone_us = found
    oldest, newest, gone = (None if moment is None else iso_time(moment) for moment in (kept.oldest_us, newest_us, gone_us))
    return TopicShown(
        spec.name,
        spec.partitions,
        spec.key,
        list(spec.types),
        kept.count,
        oldest,
        newest,
        spec.keep_s,
        spec.keep_bytes,
        spec.keep_newest,
        gone,
    )


@app.command("set")
def set_(
    name: Annotated[str, typer.Argument(metavar="TOPIC", help="The topic's name.", show_default=False)],
    keep_s: Annotated[
        str | None,
        typer.Option("--keep-s", metavar="AGE", help="Delete what is older: 7d, 12h, 30min, 90s; or none.", show_default=False),
    ] = None,
    keep_bytes: Annotated[
        str | None,
        typer.Option(
            "--keep-bytes", metavar="SIZE", help="Delete what a partition holds beyond: 500MB, 2GiB; or none.", show_default=False
        ),
    ] = None,
    partitions: Annotated[
        int | None, typer.Option("--partitions", metavar="N", help="Cannot be changed.", show_default=False)
    ] = None,
    log_url: LogUrl = None,
    is_sure: Yes = False,
) -> None:
    """Change how long a topic keeps its events. Asks before it keeps less."""
    if partitions is not None:
        raise CommandRefused(
            f"the partitions of {name!r} stay as they are: by their number a key finds its events, and their order. "
            f"Declare a topic of another name with partitions={partitions}, and publish to it"
        )
    if keep_s is None and keep_bytes is None:
        raise typer.BadParameter("expected --keep-s, --keep-bytes or both")
    changes: dict[str, Any] = {}
    try:
        if keep_s is not None:
            changes["keep_s"] = parse_age_s(keep_s)
        if keep_bytes is not None:
            changes["keep_bytes"] = parse_bytes(keep_bytes)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    settings = settings_from(log_url=log_url)
    before = asyncio.run(_spec(settings, name))
    after = msgspec.structs.replace(before, **changes)
    kept, keeps = (shown_limits(spec.keep_s, spec.keep_bytes) for spec in (before, after))
    console = screen()
    if _keeps_less(before, after):
        console.print(f"topic {name} keeps {kept}, and would keep {keeps}; the rest is deleted for ever", soft_wrap=True)
        for line in asyncio.run(_behind(settings, {name})):
            console.print(line, soft_wrap=True)
        confirm("Keep less?", is_sure=is_sure)
    asyncio.run(_set(settings, after))
    console.print(f"{name} keeps {keeps}; before: {kept}", soft_wrap=True)
    console.print(
        f"declare it so, or its apps do not start: keep_s={after.keep_s}, keep_bytes={after.keep_bytes}. A running app deletes "
        f"what is not kept every few seconds, and `everlog topics trim` at once",
        soft_wrap=True,
    )


def _keeps_less(before: TopicSpec, after: TopicSpec) -> bool:
    """Tell whether a limit is new, or smaller than it was."""
    limits = ((before.keep_s, after.keep_s), (before.keep_bytes, after.keep_bytes))
    return any(is_now is not None and (was is None or is_now < was) for was, is_now in limits)


async def _behind(settings: Settings, topics: AbstractSet[str]) -> list[str]:
    """Return a line for each subscription that has not handled all of these topics, as it last reported."""
    lines: list[str] = []
    async with existing_log(settings) as log:
        for report, _ in (await read_reports(log)).values():
            if report.is_retired:
                continue
            waiting = 0
            for topic in topics & report.topics.keys():
                through = {int(partition): Offset(one.through) for partition, one in report.topics[topic].items()}
                waiting += (await log.backlog(topic, through)).count
            if waiting:
                lines.append(
                    f"{report.app}/{report.subscription} has not handled {counted(waiting, 'event')}: what is deleted before that is gone for it"
                )
    return lines


async def _spec(settings: Settings, name: str) -> TopicSpec:
    async with existing_log(settings) as log:
        specs = {spec.name: spec for spec in await log.topics()}
        chosen(name, list(specs), what="topic", where="the log")
        if name.startswith(_OWN):
            raise CommandRefused(
                f"{name!r} is a topic of Everlog itself, whose apps would not start with other limits: it stays as it is"
            )
        return specs[name]


async def _set(settings: Settings, spec: TopicSpec) -> None:
    async with existing_log(settings) as log:
        await log.set_retention(spec.name, keep_s=spec.keep_s, keep_bytes=spec.keep_bytes)


@app.command("trim")
def trim(log_url: LogUrl = None) -> None:
    """Delete now what the topics no longer keep; a running app does it every few seconds."""
    settings = settings_from(log_url=log_url)

    async def limited() -> set[str]:
        async with existing_log(settings) as log:
            return {spec.name for spec in await log.topics() if spec.keep_s is not None or spec.keep_bytes is not None}

    async def retain() -> int:
        async with existing_log(settings) as log:
            return await log.retain()

    console = screen()
    for line in asyncio.run(_behind(settings, asyncio.run(limited()))):  # before: what is deleted is counted no more
        console.print(line, soft_wrap=True)
    console.print(f"deleted {counted(asyncio.run(retain()), 'event')}")


async def _newest_us(log: Log, topic: str, oldest_us: int) -> int:
    """Return when the newest event of a topic was logged, to the millisecond.

    Found by halving the time between the oldest event and now: reading the last record would need the offset before the head, and
    offsets are not computed. About 40 looks, whatever the topic holds.
    """
    head = (await log.head(topic)).offsets
    low, high = to_datetime(oldest_us), to_datetime(max(SystemClock().wall_us(), oldest_us))
    while (await log.position_at(topic, high)).offsets != head:  # the log's time is ahead of ours
        low, high = high, high + max(high - low, timedelta(minutes=1))
    while high - low > _PRECISION:
        middle = low + (high - low) / 2
        if (await log.position_at(topic, middle)).offsets == head:
            high = middle
        else:
            low = middle
    return to_us(low)
