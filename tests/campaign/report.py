"""What a campaign injected, what became of it, and whether anything grew meanwhile; as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median, quantiles
from typing import Final, TypeVar

from rich.console import Console
from rich.table import Table
from tests.campaign.plan import Result, Sample

T = TypeVar("T")

MEMORY_GROWTH: Final = 1.25
MEMORY_SLACK_KIB: Final = 10_240
FILES_SLACK: Final = 4
WAL_MOST_BYTES: Final = 96 << 20
"""SQLite empties a WAL of 4 MiB when nobody reads it; a backup holds it meanwhile, and everlog gives back what is above 64 MiB."""
LATENCY_GROWTH: Final = 2.0
FEWEST_SAMPLES: Final = 12
"""A run with fewer says nothing about growth."""


def grown(result: Result) -> Sequence[str]:
    """Return what was not flat over the run, a line each; nothing for a short one.

    The second quarter of the run is compared with the last: the first one warms up.
    """
    if len(result.samples) < FEWEST_SAMPLES:
        return []
    lines: list[str] = []
    early, late = _quarter(result.samples, 1), _quarter(result.samples, 3)
    for role in sorted(late[0].memory_kib):
        before, after = (_median([one.memory_kib.get(role, 0) for one in part]) for part in (early, late))
        if after > before * MEMORY_GROWTH + MEMORY_SLACK_KIB:
            lines.append(f"memory of the {role}: {before / 1024:.0f} MiB, and {after / 1024:.0f} MiB at the end")
        files_before, files_after = (_median([one.files.get(role, 0) for one in part]) for part in (early, late))
        if files_after > files_before + FILES_SLACK:
            lines.append(f"open files of the {role}: {files_before:.0f}, and {files_after:.0f} at the end")
    if (wal := max([one.wal_bytes for one in late])) > WAL_MOST_BYTES:
        lines.append(f"the largest WAL at the end has {wal / 1e6:.0f} MB")
    calls = sorted(result.latencies)
    before_s, after_s = (_median([took for _, took in _quarter(calls, at)]) for at in (1, 3))
    if after_s > before_s * LATENCY_GROWTH:
        lines.append(f"publishing took {before_s * 1e3:.1f} ms in the median, and {after_s * 1e3:.1f} ms at the end")
    return lines


def show(result: Result, console: Console) -> None:
    """Print the tables and the verdict."""
    table = Table("injected", "times", "survived")
    for kind in sorted(result.injected):
        table.add_row(kind, f"{result.injected[kind]:,}", f"{result.survived[kind]:,}")
    console.print(table)
    events = result.published + result.emitted
    calls = [took for _, took in result.latencies]
    console.print(
        f"seed {result.plan.seed}: {result.published:,} events published and {result.emitted:,} emitted in {result.ran_s:.0f} s "
        f"({events / max(result.ran_s, 0.001):,.0f} a second), {result.unanswered:,} by producers that were killed before their answer; settled {result.settled_s:.1f} s after the last fault"
    )
    if len(calls) > 100:
        cuts = quantiles(calls, n=100)
        console.print(
            f"publishing, per call: p50 {cuts[49] * 1e3:.1f} ms, p99 {cuts[98] * 1e3:.0f} ms, longest {max(calls):.1f} s"
        )
    for role, kib in (_last(result.samples)).items():
        console.print(f"memory of the {role} that was never killed: {kib / 1024:.0f} MiB at the end")
    for line in grown(result):
        console.print(f"NOT FLAT: {line}")
    for fault in result.faults:
        console.print(f"BROKEN: {fault}", markup=False)
    console.print("0 lost, 0 doubled, 0 reordered" if not result.faults else f"{len(result.faults)} promises were broken")


def _last(samples: Sequence[Sample]) -> Mapping[str, int]:
    return samples[-1].memory_kib if samples else {}


def _quarter(items: Sequence[T], number: int) -> Sequence[T]:
    size = len(items) // 4
    return items[number * size : (number + 1) * size]


def _median(numbers: Sequence[float]) -> float:
    return median(numbers) if numbers else 0.0
