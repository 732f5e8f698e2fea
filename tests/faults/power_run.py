"""Runs the shop in processes whose writes are recorded: what is later cut at any point."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.faults.vfs import Trace
from tests.processes.yard import ROOT, Process

import everlog

_PATIENCE_S: Final = 60.0


class Site:
    """One folder, one trace, and the processes on them."""

    def __init__(self, folder: Path, *, bug: str = "none") -> None:
        self.files = folder / "files"
        self.files.mkdir()
        self.trace = folder / "trace"
        self._errors = folder / "stderr.txt"
        self._bug = bug
        self._processes: list[Process] = []

    async def start(self, role: str, *more: str) -> Process:
        """Start a process and wait until it works."""
        source = str(Path(everlog.__file__).parents[1])
        with self._errors.open("ab") as errors:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.faults.power_shop", role, self._bug, str(self.files), str(self.trace), *more,
                stdout=asyncio.subprocess.PIPE, stderr=errors, cwd=ROOT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([source, str(ROOT)])},
            )  # fmt: skip
        process = Process(child)
        self._processes.append(process)
        if role != "breaker":
            assert await process.said(1), self.errors()
        return process

    def errors(self) -> str:
        """Return the end of what the processes said of themselves."""
        return self._errors.read_text()[-3_000:]

    async def close(self) -> None:
        for process in self._processes:
            if process.child.returncode is None:
                await process.end()


async def _done(publishers: Sequence[Process]) -> None:
    for publisher in publishers:
        await publisher.said(2)


async def record(folder: Path, seed: int, *, bug: str = "none", events: int = 800) -> Path:
    """Return the trace of a day of the shop: files that are made, two publishers, two workers, retention, a killed worker, a restart."""
    site = Site(folder, bug=bug)
    try:
        async with asyncio.timeout(_PATIENCE_S):
            workers = [await site.start("worker") for _ in range(2)]
            keeper = await site.start("keeper")
            publishers = [await site.start("publisher", name, str(seed + at), str(events)) for at, name in enumerate(("p", "q"))]
            for victim in (0, 1):  # their turns, slots and member numbers are taken over
                Trace(site.trace).mark(what="killed")
                await workers[victim].end(signal.SIGKILL)
                workers[victim] = await site.start("worker")
            await _done(publishers)
            await keeper.end(signal.SIGKILL)
            for process in (*publishers, *workers):
                await process.end(signal.SIGTERM)  # the last one brings the WAL into the file and deletes it
            worker, again = await site.start("worker"), await site.start("publisher", "r", str(seed), str(events // 4))
            await _done([again])
            for process in (again, worker):
                await process.end(signal.SIGKILL)
    except TimeoutError:
        raise AssertionError(f"the processes did not end within {_PATIENCE_S:g} s: {site.errors()}") from None
    finally:
        await site.close()
    return site.trace


async def record_quickly(folder: Path, seed: int, *, bug: str, events: int = 120) -> Path:
    """Return a short trace: one worker and one publisher."""
    site = Site(folder, bug=bug)
    try:
        async with asyncio.timeout(_PATIENCE_S):
            worker = await site.start("worker")
            publisher = await site.start("publisher", "p", str(seed), str(events))
            await _done([publisher])
            await worker.end(signal.SIGTERM)
    finally:
        await site.close()
    return site.trace


async def record_a_failed_sync(folder: Path, seed: int, *, bug: str = "none") -> Path:
    """Return the trace of a log with one sync that failed, whose process is gone, and of another one that publishes then."""
    site = Site(folder, bug=bug)
    try:
        async with asyncio.timeout(_PATIENCE_S):
            broken = await site.start("breaker")
            assert await broken.child.wait() == 0, site.errors()
            publisher = await site.start("publisher", "p", str(seed), "8")
            await _done([publisher])
    finally:
        await site.close()
    return site.trace
