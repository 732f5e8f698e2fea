from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.__main__ import BENCHMARKS
from benchmarks.by_hand import chunk_of, events_of, validated
from benchmarks.harness import Result
from benchmarks.importing import IMPORT
from benchmarks.publishing import BATCHES
from benchmarks.sample import OrderPlaced, order_events, orders

from everlog.codec import Chunk, ProducerRun, encode_chunk
from everlog.position import BEGINNING, Offset, TopicPartition
from everlog.record import NewRecord

ROOT = Path(__file__).parents[2]
ROW = {
    "name", "ours", "reference", "ratio", "target", "unit", "lower_is_better", "is_met",
    "ratio_min", "ratio_max", "pairs", "ours_is", "reference_is",
}  # fmt: skip


def bench(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *flags], check=False, cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_a_quick_run_writes_a_row_for_every_benchmark(tmp_path: Path) -> None:
    done = bench("--quick", "--json", str(tmp_path / "bench.json"))
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((tmp_path / "bench.json").read_text())
    assert set(report) == {"machine", "is_quick", "rows"}
    assert report["is_quick"] is True
    assert set(report["machine"]) == {"measured_at", "system", "processors", "load", "python", "sqlite"}
    installed = [one for one in BENCHMARKS if one.needs is None or importlib.util.find_spec(one.needs)]
    assert [row["name"] for row in report["rows"]] == [one.name for one in installed]
    for row, benchmark in zip(report["rows"], installed, strict=True):
        assert set(row) == ROW
        assert (row["target"], row["unit"], row["pairs"]) == (benchmark.target, benchmark.unit, 1)
        assert row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
        assert row["name"] in done.stdout


def test_one_benchmark_is_measured_as_often_as_asked(tmp_path: Path) -> None:
    done = bench("--quick", "--only", "publish-one-by-one", "--pairs", "3", "--json", str(tmp_path / "bench.json"))
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert (row["name"], row["pairs"]) == ("publish-one-by-one", 3)


def test_names_are_unique() -> None:
    assert len({one.name for one in BENCHMARKS}) == len(BENCHMARKS)


@pytest.mark.parametrize(
    ("ratios", "is_speed_met", "is_cost_met"),
    [
        ([0.1, 0.69, 0.9], False, False),
        ([0.1, 0.7, 0.9], True, False),
        ([0.1, 0.25, 0.9], False, True),
        ([0.1, 0.26, 0.9], False, False),
    ],
)
def test_a_speed_must_reach_its_target_and_a_cost_must_stay_below_it(
    ratios: list[float], is_speed_met: bool, is_cost_met: bool
) -> None:
    assert Result(BATCHES, 1.0, 1.0, ratios).is_met is is_speed_met
    assert Result(IMPORT, 1.0, 1.0, ratios).is_met is is_cost_met


def test_each_side_reads_the_chunks_of_the_other() -> None:
    events = order_events(10)
    datas = validated(events)
    keys = [event.customer_id for event in events]
    where = TopicPartition(orders.name, 3)
    theirs = Chunk.from_bytes(chunk_of(datas, keys, 7, 5), where, Offset(7), after=BEGINNING)
    records = [NewRecord("bench.order_placed/1", data, key, 3, "publisher", 5) for data, key in zip(datas, keys, strict=True)]
    body = encode_chunk(records, [ProducerRun("by-hand", 7, len(records))], 5)
    ours = Chunk.from_bytes(body, where, Offset(7), after=BEGINNING)
    assert body == chunk_of(datas, keys, 7, 5)
    assert list(theirs.records()) == list(ours.records())
    envelope, read = events_of(body)
    assert (read, envelope[2]) == (events, keys)


def test_the_event_is_about_200_bytes_of_json() -> None:
    for data in validated(order_events(100)):
        assert 180 <= len(data) <= 220


def test_events_are_the_same_in_every_run() -> None:
    assert order_events(3) == order_events(3)
    assert all(isinstance(event, OrderPlaced) for event in order_events(3))
