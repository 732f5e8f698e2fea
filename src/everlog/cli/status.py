"""`everlog status`: how far each subscription is, as the log itself says it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from everlog.cli.exits import LAGS
from everlog.cli.options import AsJson, LogUrl, existing_log, settings_from
from everlog.cli.terminal import age, ago, iso_time, print_json, screen, table
from everlog.clock import SystemClock
from everlog.settings import Settings, resolve, shown
from everlog.subscriptions.report import Lag, read_lags

_AHEAD_US: Final = 60_000_000
"""A log whose time is further ahead than this has a machine with a wrong clock among its writers."""


def status(
    log_url: LogUrl = None,
    max_lag: Annotated[
        int | None, typer.Option("--max-lag", metavar="N", min=0, help="Exit with 3 when one lags more.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show how far behind each subscription is, and what it holds back. Reads only the log."""
    settings, now_us = settings_from(log_url=log_url), SystemClock().wall_us()
    lags = asyncio.run(_lags(settings, now_us))
    if as_json:
        print_json({"log": shown(resolve(settings.log_url)), "subscriptions": [_shown(lag) for lag in lags]})
    else:
        _print(lags, settings, now_us)
    late = [lag for lag in lags if max_lag is not None and lag.count > max_lag]
    if late:
        names = ", ".join(f"{_name(lag)} ({lag.count:,})" for lag in late)
        screen(stderr=True).print(f"everlog: more than {max_lag:,} behind: {names}", soft_wrap=True)
        raise typer.Exit(LAGS)


async def _lags(settings: Settings, now_us: int) -> list[Lag]:
    async with existing_log(settings) as log:
        return await read_lags(log, now_us)


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
            _name(lag),
            _number(lag.count, "yellow"),
            age(lag.age_s) if lag.age_s is not None else "–",
            _number(report.blocked_keys, "yellow"),
            _number(report.parked_keys, "red"),
            f"{report.held_records:,}",
            outbox,
            ago(lag.reported_us, now_us),
        )
    console.print(made)
    if any(lag.reported_us > now_us + _AHEAD_US for lag in lags):
        console.print("the log's time is more than a minute ahead of this machine's: one of the clocks is wrong")


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
        "outbox": report.outbox,
        "outbox_parked": report.outbox_parked,
        "reported_at": iso_time(lag.reported_us),
        "topics": report.topics,
    }
