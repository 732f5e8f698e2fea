"""Memory: how much a consumer needs at most while it works off a large backlog."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.harness import Benchmark, Row, Setting, Sides
from benchmarks.sample import settings_in

ROOT: Final = Path(__file__).parents[1]
_AT_MOST_S: Final = 600.0


@contextmanager
def _peak(setting: Setting) -> Generator[Sides]:
    folder = setting.backlogs.of(setting.events)
    yield Sides(partial(_consume, folder, setting.events))


def _consume(folder: Path, events: int) -> Sequence[float]:
    """Return the most megabytes (of 1,000,000 bytes) that `everlog run` had in memory, from its start to its last event."""
    with tempfile.TemporaryDirectory(dir=folder) as store_folder:
        settings = settings_in(folder)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("EVERLOG_")} | {
            "EVERLOG_LOG_URL": settings.log_url,
            "EVERLOG_STORE_URL": f"sqlite:{store_folder}/app.db",
            "EVERLOG_ACCEPT_NEW_STORE": "1",
            "BENCHMARK_EVENTS": str(events),
        }
        command = [sys.executable, "-m", "everlog", "run", "benchmarks.counting"]
        ended = subprocess.run(command, check=False, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=_AT_MOST_S)
    said = [line.removeprefix("peak ") for line in ended.stdout.splitlines() if line.startswith("peak ")]
    if ended.returncode or not said:
        raise RuntimeError(f"everlog run ended with {ended.returncode} and without a figure:\n{ended.stdout}{ended.stderr}")
    return (int(said[0]) / 1e6,)


MEMORY: Final = Benchmark(
    name="memory",
    rows=[Row("memory", "MB", target=80, lower_is_better=True)],
    ours_is="`everlog run` of an app with an async handler per event on a large backlog: its peak resident memory",
    reference_is=None,
    prepare=_peak,
    pairs=1,
    warms_up=False,
)
