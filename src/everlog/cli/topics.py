"""`everlog topics`: what the log holds."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import msgspec

from everlog.cli.options import AsJson, LogUrl, existing_log, settings_from
from everlog.cli.terminal import ago, iso_time, print_json, screen, table
from everlog.clock import SystemClock, to_datetime, to_us
from everlog.log import Backlog, Log, TopicSpec
from everlog.settings import resolve, shown

_PRECISION: timedelta = timedelta(milliseconds=1)


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


def topics(log_url: LogUrl = None, as_json: AsJson = False) -> None:
    """Show the topics: partitions, key, types, how many events, and from when."""
    settings = settings_from(log_url=log_url)

    async def collect() -> list[tuple[TopicSpec, Backlog, int | None]]:
        async with existing_log(settings) as log:
            rows: list[tuple[TopicSpec, Backlog, int | None]] = []
            for spec in await log.topics():
                first = await log.first(spec.name)
                kept = await log.backlog(spec.name, {where.partition: offset for where, offset in first.offsets.items()})
                newest_us = None if kept.oldest_us is None else await _newest_us(log, spec.name, kept.oldest_us)
                rows.append((spec, kept, newest_us))
            return rows

    rows = asyncio.run(collect())
    if as_json:
        print_json([_shown(*row) for row in rows])
        return
    console, now_us = screen(), SystemClock().wall_us()
    if not rows:
        console.print(
            f"{shown(resolve(settings.log_url))} has no topics yet: the first event, or the first run of an app, makes them"
        )
        return
    made = table("topic", "partitions", "key", "events", "oldest", "newest", right=("partitions", "events", "oldest", "newest"))
    for spec, kept, newest_us in rows:
        lines = "\n".join([spec.name, *[f"  {name}" for name in spec.types]])
        oldest = ago(kept.oldest_us, now_us) if kept.oldest_us is not None else "–"
        newest = ago(newest_us, now_us) if newest_us is not None else "–"
        made.add_row(lines, str(spec.partitions), spec.key or "–", f"{kept.count:,}", oldest, newest)
    console.print(made)


def _shown(spec: TopicSpec, kept: Backlog, newest_us: int | None) -> TopicShown:
    oldest = iso_time(kept.oldest_us) if kept.oldest_us is not None else None
    newest = iso_time(newest_us) if newest_us is not None else None
    return TopicShown(
        spec.name, spec.partitions, spec.key, list(spec.types), kept.count, oldest, newest, spec.keep_s, spec.keep_bytes
    )


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
