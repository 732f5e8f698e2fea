"""`everlog status`: how far each subscription is, as the log itself says it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer
from rich.text import Text

from everlog.cli.exits import LAGS
from everlog.cli.holding import full_line, is_full, paused_line
from everlog.cli.options import AsJson, LogUrl, existing_log, settings_from
from everlog.cli.terminal import age, ago, iso_time, print_json, screen, table
from everlog.clock import AHEAD_US, SystemClock, to_datetime
from everlog.log import Log
from everlog.settings import Settings, resolve, shown
from everlog.subscriptions.report import Lag, read_lags


def status(
    log_url: LogUrl = None,
    max_lag: Annotated[
        int | None, typer.Option("--max-lag", metavar="N", min=0, help="Exit with 3 when one lags more.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show how far behind each subscription is, and what it holds back. Reads only the log."""
    settings, now_us = settings_from(log_url=log_url), SystemClock().wall_us()
    lags, is_ahead = asyncio.run(_read(settings, now_us))
    if as_json:
        print_json(
            {
                "log": shown(resolve(settings.log_url)),
                "is_ahead": is_ahead,
                "subscriptions": [_shown(lag) for lag in lags],
            }
        )
    else:
        _print(lags, settings, now_us)
    if is_ahead:
        text = "everlog: the log's time is more than a minute ahead of this machine's: one of the clocks is wrong, or was"
        screen(stderr=True).print(text, soft_wrap=True)
    late = [lag for lag in lags if max_lag is not None and lag.count > max_lag]
    if late:
        names = ", ".join(f"{_name(lag)} ({lag.count:,})" for lag in late)
        screen(stderr=True).print(f"everlog: more than {max_lag:,} behind: {names}", soft_wrap=True)
        raise typer.Exit(LAGS)
    if max_lag is not None and not lags:
        screen(stderr=True).print(
            f"everlog: whether anything is more than {max_lag:,} behind nobody knows: no app has reported", soft_wrap=True
        )
        raise typer.Exit(LAGS)


async def _read(settings: Settings, now_us: int) -> tuple[list[Lag], bool]:
    async with existing_log(settings) as log:
        return await read_lags(log, now_us), await _is_ahead(log, now_us)


async def _is_ahead(log: Log, now_us: int) -> bool:
    """Return whether the log holds records of a time that is more than a minute ahead."""
    if not log.features.log_time:
        return False
    limit = to_datetime(now_us + AHEAD_US)
    for spec in await log.topics():
        head = await log.head(spec.name)  # first: what comes in between is not ahead
        position = await log.position_at(spec.name, limit)
        if any(position.offsets[where] < offset for where, offset in head.offsets.items()):
            return True
    return False


def _name(lag: Lag) -> str:
    """Return the app's name where the subscription is its own one, and both otherwise."""
    return lag.report.app if lag.report.app == lag.report.subscription else lag.report.name


def _print(lags: list[Lag], settings: Settings, now_us: int) -> None:
    console = screen()
    if not lags:
        console.print(
            f"no app has reported to {shown(resolve(settings.log_url))} yet: `everlog run` does, about once a second",
            soft_wrap=True,
        )
        return
    numbers = ("lag", "age", "blocked", "parked", "held", "outbox", "reported")
    made = table("subscription", *numbers, right=numbers)
    for lag in lags:
        report = lag.report
        outbox = f"{report.outbox:,}" + (f" ({report.outbox_parked:,} refused)" if report.outbox_parked else "")
        made.add_row(
            Text(_name(lag), style="red" if report.paused is not None else ""),
            _number(lag.count, "yellow"),
            age(lag.age_s) if lag.age_s is not None else "–",
            _number(report.blocked_keys, "yellow"),
            _number(report.parked_keys, "red"),
            Text(f"{report.held_records:,}", style="red" if is_full(report.held_records, report.held_bytes) else ""),
            outbox,
            ago(lag.reported_us, now_us),
        )
    console.print(made)
    for lag in lags:
        report = lag.report
        if report.paused is not None:
            console.print(paused_line(_name(lag), report.paused), style="red", soft_wrap=True)
        if is_full(report.held_records, report.held_bytes):
            line = full_line(report.app, _name(lag), report.held_records, report.held_bytes)
            console.print(line, style="yellow", soft_wrap=True)


def _number(number: int, style: str) -> Text:
    return Text(f"{number:,}", style=style if number else "")


def _shown(lag: Lag) -> dict[str, Any]:
    report = lag.report
    return {
        "name": report.name,
        "app": report.app,
        "subscription": report.subscription,
        "store": report.store,
        "generation": report.generation,
        "lag": lag.count,
        "age_s": lag.age_s,
        "blocked_keys": report.blocked_keys,
        "parked_keys": report.parked_keys,
        "held_records": report.held_records,
        "held_bytes": report.held_bytes,
        "is_full": is_full(report.held_records, report.held_bytes),
        "paused": report.paused,
        "outbox": report.outbox,
        "outbox_parked": report.outbox_parked,
        "reported_at": iso_time(lag.reported_us),
        "topics": report.topics,
    }
