"""What is shown of results, and what is written to `bench.json`."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import apsw
import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.harness import Result


class Machine(msgspec.Struct, frozen=True):
    """Where and when it was measured: absolute numbers mean nothing without."""

    measured_at: str
    system: str
    processors: int
    load: float
    """Processes that wanted to run, over the last minute, as the measuring ended: above 2, other work was in the way."""
    python: str
    sqlite: str


class Row(msgspec.Struct, frozen=True):
    """One benchmark in `bench.json`. `ratio` is the median of the pairs' ratios, ours divided by the reference."""

    name: str
    ours: float
    reference: float
    ratio: float
    target: float | None
    unit: str
    lower_is_better: bool
    is_met: bool | None
    ratio_min: float
    ratio_max: float
    pairs: int
    ours_is: str
    reference_is: str


class Report(msgspec.Struct, frozen=True):
    """The whole of `bench.json`."""

    machine: Machine
    is_quick: bool
    """A smoke test wrote it: its times mean nothing."""
    rows: Sequence[Row]


def report_of(results: Sequence[Result], *, is_quick: bool) -> Report:
    """Return what is to be written."""
    machine = Machine(
        datetime.now(UTC).isoformat(timespec="seconds"),
        platform.platform(),
        os.cpu_count() or 0,
        round(os.getloadavg()[0], 2),
        platform.python_version(),
        apsw.sqlite_lib_version(),
    )
    return Report(machine, is_quick, [_row(result) for result in results])


def _row(result: Result) -> Row:
    benchmark = result.benchmark
    return Row(
        benchmark.name,
        result.ours,
        result.reference,
        result.ratio,
        benchmark.target,
        benchmark.unit,
        benchmark.lower_is_better,
        result.is_met,
        min(result.ratios),
        max(result.ratios),
        len(result.ratios),
        benchmark.ours_is,
        benchmark.reference_is,
    )


def write(report: Report, path: Path) -> None:
    """Write the report as JSON, for people and for programs."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")


def show(report: Report, console: Console) -> None:
    """Print the report as a table."""
    title = "Ours beside the reference: the median of pairs taken side by side"
    table = Table(title=title, caption=_caption(report), box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("benchmark", no_wrap=True)
    for heading in ("ours", "reference", "ratio", "spread", "target"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(
            f"{row.name}, {row.unit}",
            f"{row.ours:,.0f}",
            f"{row.reference:,.0f}",
            f"{row.ratio:.2f}",
            f"{row.ratio_min:.2f}–{row.ratio_max:.2f}",
            _target(row),
        )
    console.print(table)


def _target(row: Row) -> str:
    if row.target is None:
        return ""
    return f"[{'green' if row.is_met else 'red'}]{'≤' if row.lower_is_better else '≥'} {row.target:.2f}[/]"


def _caption(report: Report) -> str:
    machine = report.machine
    pairs = statistics.median([row.pairs for row in report.rows]) if report.rows else 0
    quick = "SMOKE TEST: these times mean nothing. " if report.is_quick else ""
    return f"{quick}{pairs:g} pairs each · {machine.processors} processors, load {machine.load} · Python {machine.python} · SQLite {machine.sqlite}"
