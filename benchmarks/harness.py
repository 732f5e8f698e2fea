"""How everything here is measured: ours and a reference in turns, in one process, on one disk, and the median of their ratios.

A machine that others share is slower at times; two measurements next to each other are slowed alike, so only their ratio is a result.
"""

from __future__ import annotations

import gc
import statistics
import sys
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import uvloop

from everlog.cli.run import SWITCH_INTERVAL_S

T = TypeVar("T")


class Sides(NamedTuple):
    """The two measurements of a pair. Each does its work once and returns what it measured, in the benchmark's unit."""

    ours: Callable[[], float]
    reference: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One row of the table.

    Attributes:
        name: What `--only` takes.
        ours_is, reference_is: What each side does and what of it is timed, in a sentence.
        unit: Of what both sides return.
        prepare: Given an empty folder and whether this is a smoke test, makes what both sides need and lends them.
        target: What the ratio, ours divided by the reference, should be; ``None`` where the row is there to look at.
        lower_is_better: The sides return a cost, and the target is the most; otherwise a speed, and it is the least.
        needs: A module that the reference needs, and that may not be installed.
    """

    name: str
    ours_is: str
    reference_is: str
    unit: str
    prepare: Callable[[Path, bool], AbstractContextManager[Sides]]
    target: float | None = None
    lower_is_better: bool = False
    needs: str | None = None


class Result(NamedTuple):
    """What a benchmark gave: medians, and the spread of the ratios."""

    benchmark: Benchmark
    ours: float
    reference: float
    ratios: list[float]

    @property
    def ratio(self) -> float:
        """The median of the pairs' ratios."""
        return statistics.median(self.ratios)

    @property
    def is_met(self) -> bool | None:
        """Whether the target is reached; ``None`` where there is none."""
        target = self.benchmark.target
        if target is None:
            return None
        return self.ratio <= target if self.benchmark.lower_is_better else self.ratio >= target


def measure(benchmark: Benchmark, build: Path, *, pairs: int, is_quick: bool) -> Result:
    """Take pairs of a benchmark: A B, B A, A B, … so that neither side is always the first.

    Args:
        benchmark: What to measure.
        build: A folder on the disk to measure; what is made in it is removed.
        pairs: How many. Without `is_quick`, one more is taken first and thrown away.
        is_quick: A smoke test: little work, and times that mean nothing.
    """
    ours: list[float] = []
    references: list[float] = []
    with tempfile.TemporaryDirectory(dir=build) as folder, benchmark.prepare(Path(folder), is_quick) as sides:
        if not is_quick:
            _measured(sides.ours)
            _measured(sides.reference)
        for number in range(pairs):
            if number % 2 == 0:
                ours.append(_measured(sides.ours))
                references.append(_measured(sides.reference))
            else:
                references.append(_measured(sides.reference))
                ours.append(_measured(sides.ours))
    ratios = [mine / other for mine, other in zip(ours, references, strict=True)]
    return Result(benchmark, statistics.median(ours), statistics.median(references), ratios)


def _measured(side: Callable[[], float]) -> float:
    """Measure one side with the garbage collector on, as users have it, and without the garbage of what ran before."""
    gc.collect()
    gc.freeze()
    try:
        return side()
    finally:
        gc.unfreeze()


def run_as_service(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as `everlog run` runs an app: on uvloop, with its switch interval for threads."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        return uvloop.run(work)
    finally:
        sys.setswitchinterval(before_s)
