"""What is counted in one process, and that of several as one."""

from __future__ import annotations

import msgspec
import pytest

from everlog.observe import meters as families
from everlog.observe.meters import FAMILIES, Meters, Snapshot, lasting, merged


def numbers(snapshot: Snapshot) -> dict[tuple[str, ...], float]:
    return {(name.removeprefix("everlog_"), *labels): value for name, labels, value in snapshot.numbers}


def test_a_histogram_counts_a_value_in_the_bucket_whose_bound_it_does_not_exceed() -> None:
    meters = Meters()
    units = meters.histogram(families.GROUP_UNITS, "shop")
    for value in (1, 2, 2, 3, 257):
        units.add(value)
    (one,) = meters.snapshot().histograms
    assert one.counts == [1, 2, 1, 0, 0, 0, 0, 0, 0, 1]
    assert one.total == 265


def test_the_same_histogram_is_given_out_again() -> None:
    meters = Meters()
    assert meters.histogram(families.GROUP_UNITS, "a") is meters.histogram(families.GROUP_UNITS, "a")
    assert meters.histogram(families.GROUP_UNITS, "a") is not meters.histogram(families.GROUP_UNITS, "b")


def test_of_several_processes_the_sum_is_shown_of_what_they_count_and_the_highest_of_what_they_see() -> None:
    snapshots: list[Snapshot] = []
    for count, lag in ((2, 7), (3, 5)):
        meters = Meters()
        meters.add(families.HANDLED, count, "shop", "shop")
        meters.set(families.LAG_EVENTS, lag, "shop", "shop")
        meters.histogram(families.GROUP_UNITS, "shop").add(count)
        snapshots.append(meters.snapshot())
    both = merged(snapshots)
    assert numbers(both) == {("events_handled", "shop", "shop"): 5, ("subscription_lag_events", "shop", "shop"): 7}
    (units,) = both.histograms
    assert (sum(units.counts), units.total) == (2, 5)
    assert snapshots[0].histograms[0].total == 2  # they stay as they are


def test_of_a_process_that_has_ended_what_it_counted_lasts_and_where_things_stood_does_not() -> None:
    meters = Meters()
    meters.add(families.HANDLED, 2, "shop", "shop")
    meters.set(families.LAG_EVENTS, 7, "shop", "shop")
    meters.histogram(families.COMMIT_SECONDS, "shop").add(0.1)
    left = lasting(meters.snapshot())
    assert numbers(left) == {("events_handled", "shop", "shop"): 2}
    assert len(left.histograms) == 1


def test_an_app_that_ends_stands_nowhere_any_more_and_others_stay() -> None:
    meters = Meters()
    for app in ("a", "b"):
        meters.add(families.HANDLED, 1, app, app)
        meters.set(families.LAG_EVENTS, 1, app, app)
        meters.set(families.OUTBOX, 1, app)
    meters.forget_gauges("a")
    assert sorted(numbers(meters.snapshot())) == [
        ("events_handled", "a", "a"),
        ("events_handled", "b", "b"),
        ("outbox_events", "b"),
        ("subscription_lag_events", "b", "b"),
    ]


def test_a_snapshot_survives_the_way_to_another_process() -> None:
    meters = Meters()
    meters.add(families.HANDLED, 2, "shop", "shop")
    meters.histogram(families.SYNC_SECONDS, "log", "").add(0.001)
    sent = meters.snapshot()
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=Snapshot) == sent


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_is_named_as_prometheus_wants_it(family: families.Family) -> None:
    assert family.name.startswith("everlog_")
    assert not family.name.endswith(("_total", "_count", "_sum", "_bucket"))
    assert family.help.endswith(".")
    assert (family.kind == "histogram") == bool(family.bounds)
    assert list(family.bounds) == sorted(family.bounds)
