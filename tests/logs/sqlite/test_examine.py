"""Looking at a log file without opening it: its identity and its time."""

from __future__ import annotations

from pathlib import Path

import pytest

from everlog.finding import Finding, Level
from everlog.log import TopicSpec
from everlog.logs.sqlite import examine_log, open_log
from everlog.testing.clock import ManualClock


@pytest.mark.parametrize(
    ("seconds", "level", "found"),
    [
        (0, Level.OK, "last written 0 s ago"),
        (90, Level.OK, "last written 90 s ago"),
        (-60, Level.OK, "last written 0 s ago"),
        (-61, Level.WARNING, "the log's time is 61 s ahead of this machine's"),
        (-3_600, Level.WARNING, "the log's time is 3,600 s ahead of this machine's"),
    ],
)
async def test_a_log_whose_time_is_more_than_a_minute_ahead_is_a_warning(
    tmp_path: Path, seconds: float, level: Level, found: str
) -> None:
    clock, url = ManualClock(), f"sqlite:{tmp_path / 'log.db'}"
    log = await open_log(url, clock=clock)
    await log.ensure_topic(TopicSpec("t", key=None))
    await log.aclose()
    clock.jump(seconds)
    examined = await examine_log(url, clock=clock)
    assert examined.log == log.identity
    (finding,) = [one for one in examined.findings if one.name == "time"]
    assert (finding.subject, finding.level, finding.found) == ("log", level, found)


async def test_a_missing_log_is_said_and_not_made(folder: Path) -> None:
    examined = await examine_log("sqlite:log.db", clock=ManualClock())
    advice = "publish an event, run an app, or say where it is with --log-url"
    assert Finding("log", "file", Level.WARNING, f"there is none at {folder / 'log.db'}", advice) in examined.findings
    assert examined.log is None
    assert not (folder / "log.db").exists()
