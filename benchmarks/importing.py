"""Importing: how long a process takes longer because it imports us."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.harness import Benchmark, Sides


@contextmanager
def _imports(folder: Path, is_quick: bool) -> Generator[Sides]:
    # As after an installation: every module is compiled, ours too, whatever the environment says and whatever was edited last.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environ["PYTHONPYCACHEPREFIX"] = str(folder)
    runs = 1 if is_quick else 5
    for module in ("everlog", "faststream"):
        _process_ms(f"import {module}", environ)
    yield Sides(partial(_import_ms, "everlog", environ, runs), partial(_import_ms, "faststream", environ, runs))


def _import_ms(module: str, environ: Mapping[str, str], runs: int) -> float:
    """Return the milliseconds of a process that imports a module, less those of one that imports nothing: the median of a few."""
    return statistics.median(_process_ms(f"import {module}", environ) - _process_ms("pass", environ) for _ in range(runs))


def _process_ms(code: str, environ: Mapping[str, str]) -> float:
    started_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=environ)
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
