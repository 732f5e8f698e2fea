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


class Line(msgspec.Struct, frozen=True):
    """One row in `bench.json`. What has no reference, or not the packages for it, has ``None`` there and in its ratio."""

    name: str
    benchmark: str
    unit: str
    ours: float
    ours_min: float
    ours_max: float
    reference: float | None
    ratio: float | None
    """The median of the pairs' ratios, ours divided by the reference."""
    ratio_min: float | None
    ratio_max: float | None
    target: float | None
    """Of the ratio; of ours, where there is no reference."""
    lower_is_better: bool
    is_met: bool | None
    pairs: int
    missing: Sequence[str]
    """Packages that the reference needs and that are not installed: only ours was measured."""
    ours_is: str
    reference_is: str | None


class Report(msgspec.Struct, frozen=True):
    """The whole of `bench.json`."""

    machine: Machine
    is_quick: bool
    """A smoke test wrote it: its times mean nothing."""
    events: int
    """How many events a large log held."""
    rows: Sequence[Line]


def report_of(results: Sequence[Result], *, is_quick: bool, events: int) -> Report:
    """Return what is to be written."""
    machine = Machine(
        datetime.now(UTC).isoformat(timespec="seconds"),
        platform.platform(),
        os.cpu_count() or 0,
        round(os.getloadavg()[0], 2),
        platform.python_version(),
        apsw.sqlite_lib_version(),
    )
    return Report(machine, is_quick, events, [_line(result) for result in results])


def _line(result: Result) -> Line:
    benchmark, row = result.benchmark, result.row
    ratios = result.ratios
    return Line(
        name=row.name,
        benchmark=benchmark.name,
        unit=row.unit,
        ours=statistics.median(result.ours),
        ours_min=min(result.ours),
        ours_max=max(result.ours),
        reference=statistics.median(result.references) if result.references else None,
        ratio=statistics.median(ratios) if ratios else None,
        ratio_min=min(ratios, default=None),
        ratio_max=max(ratios, default=None),
        target=row.target,
        lower_is_better=row.lower_is_better,
        is_met=result.is_met,
        pairs=len(result.ours),
        missing=benchmark.missing,
        ours_is=benchmark.ours_is,
        reference_is=benchmark.reference_is,
    )


def write(report: Report, path: Path) -> None:
    """Write the report as JSON, for people and for programs."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")


def show(report: Report, console: Console) -> None:
    """Print the report as a table."""
    title = "Ours beside the reference: the median of pairs taken side by side"
    table = Table(title=title, caption=_caption(report), box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("row", no_wrap=True)
    for heading in ("ours", "reference", "ratio", "spread", "target"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in report.rows:
        low, high = (line.ours_min, line.ours_max) if line.ratio is None else (line.ratio_min, line.ratio_max)
        table.add_row(
            f"{line.name}, {line.unit}",
            _figure(line.ours),
            f"needs {', '.join(line.missing)}" if line.missing else _figure(line.reference),
            "" if line.ratio is None else _figure(line.ratio),
            f"{_figure(low)}–{_figure(high)}",
            _target(line),
        )
    console.print(table)


def _figure(number: float | None) -> str:
    if number is None:
        return "–"
    if number >= 10_000:
        return f"{number / 1e6:.2f}M" if number >= 1_000_000 else f"{number / 1e3:.0f}k"
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def _target(line: Line) -> str:
    if line.target is None:
        return ""
    bound = _figure(line.target) if line.target >= 100 else f"{line.target:g}"
    text = f"{'≤' if line.lower_is_better else '≥'} {bound}"
    if line.is_met is None:
        return text
    return f"[green]{text} met[/]" if line.is_met else f"[red]{text} missed[/]"


def _caption(report: Report) -> str:
    machine = report.machine
    quick = "SMOKE TEST: these times mean nothing. " if report.is_quick else ""
    return (
        f"{quick}A large log: {report.events:,} events · {machine.processors} processors, load {machine.load} · "
        f"Python {machine.python} · SQLite {machine.sqlite}"
    )
