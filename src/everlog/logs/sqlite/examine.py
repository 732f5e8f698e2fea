"""Looking at a log file without opening it, for `everlog doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from uuid import UUID

import apsw

from everlog.clock import AHEAD_US, Clock
from everlog.drivers.sqlite.examine import Subject, examine
from everlog.drivers.sqlite.rows import first_of
from everlog.finding import Examined, Finding, Judgement, Level
from everlog.logs.sqlite.tables import LOG

_SUBJECT: Final = "log"


async def examine_log(url: str, *, clock: Clock) -> Examined:
    """Return what is found out about the log that `sqlite:PATH` names, also if it is missing, strange or damaged. Changes nothing."""

    def look(connection: apsw.Connection) -> Examined:
        identity = UUID(bytes=first_of(connection, "SELECT value FROM meta WHERE name = 'identity'"))
        last_us = first_of(connection, "SELECT at_us FROM head")
        return Examined([Finding(_SUBJECT, "time", *_time(last_us, clock.wall_us()))], identity)

    path = (Path.cwd() / url.removeprefix("sqlite:")).resolve()
    missing = "publish an event, run an app, or say where it is with --log-url"
    return await examine(Subject(_SUBJECT, path, LOG, missing), look, clock=clock)


def _time(last_us: int, now_us: int) -> Judgement:
    ahead_s = (last_us - now_us) / 1e6
    if last_us > now_us + AHEAD_US:
        advice = "what is published gets that time until the clocks have caught up: one machine's clock is wrong, or was"
        return Judgement(Level.WARNING, f"the log's time is {ahead_s:,.0f} s ahead of this machine's", advice)
    return Judgement(Level.OK, f"last written {max(0.0, -ahead_s):,.0f} s ago")
