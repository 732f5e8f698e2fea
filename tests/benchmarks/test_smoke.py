from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.__main__ import BENCHMARKS

ROOT = Path(__file__).parents[2]
LINE = {
    "name", "benchmark", "unit", "ours", "ours_min", "ours_max", "reference", "ratio", "ratio_min", "ratio_max", "target",
    "lower_is_better", "is_met", "pairs", "missing", "ours_is", "reference_is",
}  # fmt: skip


def bench(*flags: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *flags],
        check=False,
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_a_quick_run_measures_every_row(tmp_path: Path) -> None:
    done = bench("--quick", "--json", str(tmp_path / "bench.json"))
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((tmp_path / "bench.json").read_text())
    assert set(report) == {"machine", "is_quick", "events", "rows"}
    assert report["is_quick"] is True
    assert set(report["machine"]) == {"measured_at", "system", "processors", "load", "python", "sqlite"}
    expected = [(one, row) for one in BENCHMARKS for row in one.rows]
    assert [line["name"] for line in report["rows"]] == [row.name for _, row in expected]
    for line, (benchmark, row) in zip(report["rows"], expected, strict=True):
        assert set(line) == LINE
        assert (line["target"], line["unit"], line["pairs"]) == (row.target, row.unit, 1)
        assert 0 < line["ours_min"] <= line["ours"] <= line["ours_max"]
        assert line["missing"] == list(benchmark.missing)
        if benchmark.reference_is is None or benchmark.missing:
            assert (line["reference"], line["ratio"]) == (None, None)
        else:
            assert line["ratio"] == line["ours"] / line["reference"]
        assert line["name"] in done.stdout


def test_one_benchmark_is_measured_as_often_as_asked(tmp_path: Path) -> None:
    done = bench("--quick", "--only", "publish-one-by-one", "--pairs", "3", "--json", str(tmp_path / "bench.json"))
    assert done.returncode == 0, done.stderr
    (line,) = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert (line["name"], line["pairs"]) == ("publish-one-by-one", 3)


@pytest.mark.parametrize("flags", [("--pairs", "0"), ("--events", "0"), ("--only", "what-is-not-there")])
def test_what_cannot_be_measured_is_refused(flags: tuple[str, str], tmp_path: Path) -> None:
    done = bench("--quick", *flags, "--json", str(tmp_path / "bench.json"))
    assert done.returncode == 2
    assert flags[0] in done.stderr
    assert not (tmp_path / "bench.json").exists()


def test_names_are_unique() -> None:
    assert len({one.name for one in BENCHMARKS}) == len(BENCHMARKS)
    rows = [row.name for one in BENCHMARKS for row in one.rows]
    assert len(set(rows)) == len(rows)
