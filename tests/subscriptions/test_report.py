"""What `status` shows: the newest report of each subscription, and none of those that were forgotten."""

from __future__ import annotations

from uuid import uuid4

import pytest

from everlog.log import TopicSpec
from everlog.logs.memory import MemoryLog
from everlog.position import Offset, TopicPartition
from everlog.record import NewRecord
from everlog.store import Progress, StoreStatus, SubscriptionStatus
from everlog.subscriptions.report import progress_topic, publish_reports, publish_retired, read_lags, read_reports, reports_of
from everlog.testing.clock import ManualClock

ORDERS = "shop.orders"


async def _log(clock: ManualClock, *, events: int) -> MemoryLog:
    log = MemoryLog(clock)
    await log.ensure_topic(progress_topic.spec())
    await log.ensure_topic(TopicSpec(ORDERS, key="id", partitions=1))
    for _ in range(events):
        await log.append(ORDERS, [NewRecord("shop.order/1", b"{}", "k", 0, "test", 0)])
    return log


async def _report(log: MemoryLog, through: int, *, unfinished: int = 0, held: int = 0) -> None:
    progress = Progress(TopicPartition(ORDERS, 0), Offset(through), [Offset(n) for n in range(unfinished)])
    status = StoreStatus("shop", None, [SubscriptionStatus("shop", 1, [progress], 0, 0, held)], 0, 0)
    await publish_reports(log, "shop", reports_of(uuid4(), status), 0)


async def test_the_newest_report_of_a_subscription_counts() -> None:
    log = await _log(ManualClock(), events=10)
    await _report(log, 3)
    await _report(log, 7)
    ((report, _),) = (await read_reports(log)).values()
    assert report.topics[ORDERS]["0"].through == 7


async def test_lag_counts_what_waits_what_is_unfinished_and_what_is_held() -> None:
    clock = ManualClock()
    log = await _log(clock, events=10)
    clock.advance(30)
    await _report(log, 5, unfinished=2, held=3)
    (lag,) = await read_lags(log, clock.wall_us())
    assert (lag.count, lag.age_s) == (4 + 2 + 3, 30.0)  # offset 0 is the oldest that is unfinished


async def test_the_age_is_that_of_the_oldest_event_in_a_hanging_handler_too() -> None:
    clock = ManualClock()
    log = await _log(clock, events=1)
    clock.advance(100)
    for _ in range(2):
        await log.append(ORDERS, [NewRecord("shop.order/1", b"{}", "k", 0, "test", 0)])
    clock.advance(7)
    await _report(log, 2, unfinished=1)
    (lag,) = await read_lags(log, clock.wall_us())
    assert (lag.count, lag.age_s) == (1, 107.0)
    await _report(log, 2)
    (lag,) = await read_lags(log, clock.wall_us())
    assert (lag.count, lag.age_s) == (0, None)


async def test_a_subscription_that_was_retired_has_no_lag() -> None:
    clock = ManualClock()
    log = await _log(clock, events=10)
    await _report(log, 5)
    await publish_retired(log, "shop", "shop", 0)
    assert await read_lags(log, clock.wall_us()) == []


async def test_retiring_what_never_reported_says_nothing() -> None:
    log = await _log(ManualClock(), events=0)
    await publish_retired(log, "shop", "shop", 0)
    assert await read_reports(log) == {}


async def test_the_newest_report_of_each_subscription_outlives_the_older_ones() -> None:
    clock = ManualClock()
    log = await _log(clock, events=10)
    for through in range(5):
        await _report(log, through)
        clock.advance(10)
    clock.advance(2 * 3_600)
    assert await log.retain() == 4
    ((report, _),) = (await read_reports(log)).values()
    assert report.topics[ORDERS]["0"].through == 4
    (lag,) = await read_lags(log, clock.wall_us())
    assert lag.count == 5
    await _report(log, 9)
    ((report, _),) = (await read_reports(log)).values()
    assert report.topics[ORDERS]["0"].through == 9


@pytest.mark.parametrize(
    ("reasons", "said"),
    [
        ([], None),
        (["no bank"], "no bank (1 process)"),
        (["no bank", "the last 3 keys failed"], "no bank (2 processes)"),
    ],
)
def test_a_pause_is_reported_with_the_first_reason_and_the_number_of_processes(reasons: list[str], said: str | None) -> None:
    status = StoreStatus("shop", None, [SubscriptionStatus("shop", 1, [], 0, 0, 0, reasons, 7)], 0, 0)
    (report,) = reports_of(uuid4(), status)
    assert (report.paused, report.held_bytes) == (said, 7)
