"""How everything here is measured: ours and a reference in turns, on one disk, and the median of their ratios.

A machine that others share is slower at times; two measurements next to each other are slowed alike, so only their ratio is a result.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

from benchmarks.backlog import Backlogs

Side = Callable[[], Sequence[float]]
"""Does its work once and returns what it measured: one figure per row of its benchmark, in the row's unit."""


class Sides(NamedTuple):
    """The two measurements of a pair; without a reference, ours alone."""

    ours: Side
    reference: Side | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """What a benchmark is given to prepare itself.

    Attributes:
        folder: An empty folder on the disk to measure; what is made in it is removed.
        is_quick: A smoke test: little work, and times that mean nothing.
        events: How many events a large log holds.
        backlogs: Logs that are filled once for all benchmarks.
        has_reference: What the reference needs is installed; otherwise only our side is measured.
    """

    folder: Path
    is_quick: bool
    events: int
    backlogs: Backlogs
    has_reference: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table.

    Attributes:
        name: What it is called there.
        unit: Of what both sides return.
        target: What the ratio, ours divided by the reference, should be; of a benchmark without a reference, what ours should be. ``None``
            where the row is there to look at.
        lower_is_better: It is a cost, and the target is the most; otherwise a speed, and it is the least.
    """

    name: str
    unit: str
    target: float | None = None
    lower_is_better: bool = False


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One piece of work, measured on both sides.

    Attributes:
        name: What `--only` takes.
        rows: What is measured of it, at least one.
        ours_is: What our side does and what of it is timed, in a sentence.
        reference_is: The same of the reference; ``None`` where there is none, and the target is one for ours alone.
        prepare: Makes what both sides need and lends them.
        needs: Packages that the reference needs, and that may not be installed; then ours is measured alone, and its rows say so.
        pairs: How many are taken unless the command line says otherwise.
        warms_up: One more pair is taken first and thrown away.
    """

    name: str
    rows: Sequence[Row]
    ours_is: str
    reference_is: str | None
    prepare: Callable[[Setting], AbstractContextManager[Sides]]
    needs: Sequence[str] = ()
    pairs: int = 7
    warms_up: bool = True

    @property
    def missing(self) -> Sequence[str]:
        """The packages that the reference needs and that are not installed."""
        return [package for package in self.needs if next(iter(distributions(name=package)), None) is None]


class Result(NamedTuple):
    """What was measured for a row, once per pair."""

    benchmark: Benchmark
    row: Row
    ours: Sequence[float]
    references: Sequence[float]
    """Empty where there is no reference, or what it needs is missing."""

    @property
    def ratios(self) -> Sequence[float]:
        """Ours divided by the reference, pair by pair."""
        return [mine / other for mine, other in zip(self.ours, self.references, strict=True)] if self.references else []

    @property
    def compared(self) -> Sequence[float]:
        """What the target is for: the ratios, or ours where the benchmark has no reference. Empty where the reference is missing."""
        return self.ours if self.benchmark.reference_is is None else self.ratios

    @property
    def is_met(self) -> bool | None:
        """Whether the target is reached by the median; ``None`` where there is no target, or nothing to compare."""
        if self.row.target is None or not self.compared:
            return None
        found = statistics.median(self.compared)
        return found <= self.row.target if self.row.lower_is_better else found >= self.row.target


def measure(benchmark: Benchmark, setting: Setting, *, pairs: int) -> Sequence[Result]:
    """Take pairs of a benchmark: A B, B A, A B, … so that neither side is always the first."""
    ours: list[Sequence[float]] = []
    references: list[Sequence[float]] = []
    with benchmark.prepare(setting) as sides:
        turns = [(sides.ours, ours)] if sides.reference is None else [(sides.ours, ours), (sides.reference, references)]
        if benchmark.warms_up and not setting.is_quick:
            for side, _ in turns:
                _measured(side)
        for _ in range(pairs):
            for side, taken in turns:
                taken.append(_measured(side))
            turns.reverse()
    return [
        Result(benchmark, row, [figures[at] for figures in ours], [figures[at] for figures in references])
        for at, row in enumerate(benchmark.rows)
    ]


def measure_in(build: Path, benchmark: Benchmark, setting: Callable[[Path], Setting], *, pairs: int) -> Sequence[Result]:
    """Measure in a new folder of `build`, which is removed afterwards."""
    with tempfile.TemporaryDirectory(dir=build) as folder:
        return measure(benchmark, setting(Path(folder)), pairs=pairs)


def _measured(side: Side) -> Sequence[float]:
    """Measure one side with the garbage collector on, as users have it, and without the garbage of what ran before."""
    gc.collect()
    gc.freeze()
    try:
        return side()
    finally:
        gc.unfreeze()
