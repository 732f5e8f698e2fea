"""Importing: how long a process takes longer because it imports us."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

from benchmarks.harness import Benchmark, Row, Setting, Sides


@contextmanager
def _imports(setting: Setting) -> Generator[Sides]:
    # As after an installation: every module is compiled, ours too, whatever the environment says and whatever was edited last.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environ["PYTHONPYCACHEPREFIX"] = str(setting.folder)
    runs = 1 if setting.is_quick else 5
    sides = [partial(_import_ms, module, environ, runs) for module in _modules(setting)]
    for module in _modules(setting):
        _process_ms(f"import {module}", environ)
    yield Sides(*sides)


def _modules(setting: Setting) -> Sequence[str]:
    return ("everlog", "faststream") if setting.has_reference else ("everlog",)


def _import_ms(module: str, environ: Mapping[str, str], runs: int) -> Sequence[float]:
    """Return the milliseconds of a process that imports a module, less those of one that imports nothing: the median of a few."""
    return (statistics.median(_process_ms(f"import {module}", environ) - _process_ms("pass", environ) for _ in range(runs)),)


def _process_ms(code: str, environ: Mapping[str, str]) -> float:
    started_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=environ)
    return 1_000 * (time.perf_counter() - started_s)


IMPORT: Final = Benchmark(
    name="import",
    rows=[Row("import", "ms", target=0.25, lower_is_better=True)],
    ours_is="a whole process that runs `import everlog`, less one that runs nothing",
    reference_is="the same with `import faststream`",
    prepare=_imports,
    needs=["faststream"],
)
