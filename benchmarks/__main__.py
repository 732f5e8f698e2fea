"""`python -m benchmarks`: measure, print the table, write `bench.json`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Final

from rich.console import Console

from benchmarks import (
    competing,
    consuming,
    growing,
    importing,
    latency,
    memory,
    peer,
    poisoning,
    publishing,
    replaying,
    updating,
)
from benchmarks.backlog import Backlogs
from benchmarks.harness import Benchmark, Result, Setting, measure_in
from benchmarks.report import report_of, show, write

BENCHMARKS: Final[tuple[Benchmark, ...]] = (
    consuming.BACKLOG,
    consuming.BATCHES,
    updating.UPDATES,
    publishing.ONE_BY_ONE,
    publishing.CONCURRENT,
    publishing.BATCHES,
    publishing.BATCHES_RAW,
    replaying.REPLAY,
    latency.LATENCY,
    competing.PROCESSES,
    growing.GROWTH,
    memory.MEMORY,
    importing.IMPORT,
    peer.PEER,
    poisoning.POISON,
)
LARGE: Final = 10_000_000
LARGE_WHEN_QUICK: Final = 5_000


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
        help=f"measure this one; can be repeated: {', '.join(one.name for one in BENCHMARKS)}",
    )
    parser.add_argument("--pairs", type=_positive, default=None, help="pairs of each benchmark (its own number; with --quick 1)")
    parser.add_argument("--events", type=_positive, default=None, help=f"events of a large log ({LARGE:,})")
    parser.add_argument(
        "--json", type=Path, default=Path("bench.json"), metavar="PATH", help="where to write the results (bench.json)"
    )
    chosen = parser.parse_args()
    events = chosen.events or (LARGE_WHEN_QUICK if chosen.quick else LARGE)
    build = Path("build").absolute()
    build.mkdir(exist_ok=True)
    console = Console()
    results: list[Result] = []
    with tempfile.TemporaryDirectory(dir=build) as shared:
        backlogs = Backlogs(Path(shared))
        for benchmark in BENCHMARKS:
            if chosen.only is not None and benchmark.name not in chosen.only:
                continue
            _announce(benchmark, console)

            def setting(folder: Path, *, has_reference: bool = not benchmark.missing) -> Setting:
                return Setting(folder, chosen.quick, events, backlogs, has_reference)

            pairs = chosen.pairs or (1 if chosen.quick else benchmark.pairs)
            results.extend(measure_in(build, benchmark, setting, pairs=pairs))
    report = report_of(results, is_quick=chosen.quick, events=events)
    show(report, console)
    write(report, chosen.json)
    console.print(f"Written to {chosen.json}")


def _announce(benchmark: Benchmark, console: Console) -> None:
    against = "" if benchmark.reference_is is None else f"; against: {benchmark.reference_is}"
    console.print(f"[dim]{benchmark.name}: {benchmark.ours_is}{against}[/]", highlight=False)
    if benchmark.missing:
        console.print(f"  ours alone, for want of {', '.join(benchmark.missing)}: install everlog[bench]", highlight=False)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {number}")
    return number


if __name__ == "__main__":
    main()
