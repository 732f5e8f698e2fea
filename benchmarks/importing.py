"""Importing: how long a process takes longer because it imports us."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.harness import Benchmark, Sides


@contextmanager
def _imports(folder: Path, is_quick: bool) -> Generator[Sides]:
    runs = 1 if is_quick else 5
    yield Sides(partial(_import_ms, "everlog", folder, runs), partial(_import_ms, "faststream", folder, runs))


def _import_ms(module: str, folder: Path, runs: int) -> float:
    """Return the milliseconds of a process that imports a module, less those of one that imports nothing: the median of a few."""
    return statistics.median(_process_ms(f"import {module}", folder) - _process_ms("pass", folder) for _ in range(runs))


def _process_ms(code: str, folder: Path) -> float:
    started_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder)
    return 1_000 * (time.perf_counter() - started_s)


IMPORT: Final = Benchmark(
    name="import",
    ours_is="a whole process that runs `import everlog`, less one that runs nothing",
    reference_is="the same with `import faststream`",
    unit="ms",
    prepare=_imports,
    target=0.25,
    lower_is_better=True,
    needs="faststream",
)
