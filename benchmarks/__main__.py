"""`python -m benchmarks`: measure, print the table, write `bench.json`."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Final

from rich.console import Console

from benchmarks import consuming, importing, publishing
from benchmarks.harness import Benchmark, measure
from benchmarks.report import report_of, show, write

BENCHMARKS: Final[tuple[Benchmark, ...]] = (
    publishing.ONE_BY_ONE,
    publishing.BATCHES,
    publishing.BATCHES_RAW,
    consuming.BACKLOG,
    importing.IMPORT,
)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure Everlog beside what the same work costs by hand."
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test: one pair of little work each; the times mean nothing")
    parser.add_argument(
        "--only",
        action="append",
        choices=[one.name for one in BENCHMARKS],
        metavar="NAME",
        help="measure this one; can be repeated",
    )
    parser.add_argument("--pairs", type=_positive, default=None, help="pairs of each benchmark (7; with --quick 1)")
    parser.add_argument(
        "--json", type=Path, default=Path("bench.json"), metavar="PATH", help="where to write the results (bench.json)"
    )
    chosen = parser.parse_args()
    build = Path("build").absolute()
    build.mkdir(exist_ok=True)
    console = Console()
    results = [
        measure(benchmark, build, pairs=chosen.pairs or (1 if chosen.quick else 7), is_quick=chosen.quick)
        for benchmark in BENCHMARKS
        if (chosen.only is None or benchmark.name in chosen.only) and _is_ready(benchmark, console)
    ]
    report = report_of(results, is_quick=chosen.quick)
    show(report, console)
    write(report, chosen.json)
    console.print(f"Written to {chosen.json}")


def _is_ready(benchmark: Benchmark, console: Console) -> bool:
    if benchmark.needs is not None and importlib.util.find_spec(benchmark.needs) is None:
        console.print(f"{benchmark.name} is left out, for want of {benchmark.needs}: install everlog[bench]")
        return False
    console.print(f"[dim]{benchmark.name}: {benchmark.ours_is}; against: {benchmark.reference_is}[/]", highlight=False)
    return True


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {number}")
    return number


if __name__ == "__main__":
    main()
