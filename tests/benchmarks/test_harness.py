from __future__ import annotations

import io
import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from benchmarks.backlog import Backlogs
from benchmarks.harness import Benchmark, Result, Row, Setting, Sides, measure, measure_in
from benchmarks.report import report_of, show, write
from rich.console import Console

SPEED = Row("speed", "/s", target=0.7)
COST = Row("cost", "ms", target=0.25, lower_is_better=True)


class Work:
    """Both sides of a benchmark, and in which order they were measured."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.folder: Path | None = None

    def ours(self) -> Sequence[float]:
        self.order.append("ours")
        return (3.0 * len(self.order), 5.0)

    def reference(self) -> Sequence[float]:
        self.order.append("reference")
        return (2.0 * len(self.order), 10.0)

    @contextmanager
    def prepare(self, setting: Setting) -> Generator[Sides]:
        self.folder = setting.folder
        yield Sides(self.ours, self.reference if setting.has_reference else None)


def benchmark_of(work: Work, *, reference_is: str | None = "theirs", needs: Sequence[str] = ()) -> Benchmark:
    return Benchmark("two", [SPEED, COST], "ours", reference_is, work.prepare, needs=needs)


def setting_in(folder: Path, *, is_quick: bool = True, has_reference: bool = True) -> Setting:
    return Setting(folder, is_quick, 10, Backlogs(folder), has_reference)


def test_neither_side_is_always_the_first(tmp_path: Path) -> None:
    work = Work()
    measure(benchmark_of(work), setting_in(tmp_path), pairs=3)
    assert work.order == ["ours", "reference", "reference", "ours", "ours", "reference"]


def test_the_first_pair_is_thrown_away(tmp_path: Path) -> None:
    work = Work()
    speed, _ = measure(benchmark_of(work), setting_in(tmp_path, is_quick=False), pairs=1)
    assert len(work.order) == 4
    assert speed.ours == [9.0]


def test_each_row_has_its_own_figures_and_its_ratios_pair_by_pair(tmp_path: Path) -> None:
    speed, cost = measure(benchmark_of(Work()), setting_in(tmp_path), pairs=2)
    assert (speed.ours, speed.references) == ([3.0, 12.0], [4.0, 6.0])
    assert speed.ratios == [0.75, 2.0]
    assert cost.ratios == [0.5, 0.5]


def test_the_folder_of_a_benchmark_is_empty_and_removed(tmp_path: Path) -> None:
    work = Work()
    measure_in(tmp_path, benchmark_of(work), setting_in, pairs=1)
    assert work.folder is not None
    assert work.folder.parent == tmp_path
    assert not work.folder.exists()


@pytest.mark.parametrize(
    ("found", "is_speed_met", "is_cost_met"),
    [
        ([0.1, 0.69, 0.9], False, False),
        ([0.1, 0.7, 0.9], True, False),
        ([0.1, 0.25, 0.9], False, True),
        ([0.1, 0.26, 0.9], False, False),
    ],
)
def test_a_speed_must_reach_its_target_and_a_cost_must_stay_below_it(
    found: list[float], is_speed_met: bool, is_cost_met: bool
) -> None:
    compared = benchmark_of(Work())
    twice, twos = [2 * one for one in found], [2.0, 2.0, 2.0]
    assert Result(compared, SPEED, twice, twos).is_met is is_speed_met
    assert Result(compared, COST, twice, twos).is_met is is_cost_met
    alone = benchmark_of(Work(), reference_is=None)
    assert Result(alone, SPEED, found, []).is_met is is_speed_met
    assert Result(alone, COST, found, []).is_met is is_cost_met


def test_a_row_whose_reference_is_not_installed_says_so_and_meets_nothing(tmp_path: Path) -> None:
    benchmark = benchmark_of(Work(), needs=["msgspec", "a-package-that-nobody-has"])
    assert benchmark.missing == ["a-package-that-nobody-has"]
    results = measure(benchmark, setting_in(tmp_path, has_reference=False), pairs=2)
    report = report_of(results, is_quick=False, events=10)
    write(report, tmp_path / "bench.json")
    speed, cost = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert (speed["ours"], speed["reference"], speed["ratio"], speed["is_met"]) == (4.5, None, None, None)
    assert (cost["target"], cost["is_met"]) == (0.25, None)
    printed = io.StringIO()
    show(report, Console(file=printed, width=110))
    assert "needs a-package-that-nobody-has" in printed.getvalue()
    assert "met" not in printed.getvalue()


def test_a_table_says_which_targets_are_missed(tmp_path: Path) -> None:
    results = measure(benchmark_of(Work()), setting_in(tmp_path), pairs=1)
    printed = io.StringIO()
    show(report_of(results, is_quick=False, events=10), Console(file=printed, width=80))
    speed, cost = (line for line in printed.getvalue().splitlines() if line.startswith(("speed", "cost")))
    assert speed.split()[-4:] == ["0.75–0.75", "≥", "0.7", "met"]
    assert cost.split()[-4:] == ["0.50–0.50", "≤", "0.25", "missed"]


def test_a_backlog_is_filled_once_and_holds_what_was_asked_for(tmp_path: Path) -> None:
    backlogs = Backlogs(tmp_path)
    folder = backlogs.of(25)
    written = (folder / "log.db").stat().st_mtime_ns
    assert backlogs.of(25) == folder
    assert (folder / "log.db").stat().st_mtime_ns == written
    assert backlogs.of(25, whose="-another") != folder
