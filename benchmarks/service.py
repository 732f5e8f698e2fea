"""Running things as `everlog run` runs them: a coroutine in this process, an app until its work is done, a process of its own."""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Final, TypeVar

import uvloop

from everlog import App, Settings
from everlog.cli.run import SWITCH_INTERVAL_S

T = TypeVar("T")

ANSWER_WITHIN_S: Final = 120.0
"""A process of a benchmark that says nothing for so long has failed."""


def run_as_service(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as `everlog run` runs an app: on uvloop, with its switch interval for threads."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        return uvloop.run(work)
    finally:
        sys.setswitchinterval(before_s)


async def run_until(done: asyncio.Event, app: App, settings: Settings) -> None:
    """Run an app until an event is set; then stop it in order.

    Raises:
        EverlogError: It could not start, or could not go on.
    """
    running = asyncio.ensure_future(app.run(settings))
    waiting = asyncio.ensure_future(done.wait())
    try:
        await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            await running
    finally:
        waiting.cancel()
        running.cancel()
        await asyncio.wait([running])


@contextmanager
def child(work: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> Generator[Connection]:
    """Lend the line to a new process that runs `work(line, *arguments)` as a service, and end that process at the end.

    It is a new interpreter and no fork: nothing of this process is in its memory.
    """
    spawn = multiprocessing.get_context("spawn")
    line, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(work, theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield line
    finally:
        line.close()
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()


def heard(line: Connection) -> Any:
    """Wait for what the other end of a line sends.

    Raises:
        TimeoutError: It sends nothing.
        EOFError: It has ended.
    """
    if not line.poll(ANSWER_WITHIN_S):
        raise TimeoutError(f"a process of the benchmark has said nothing for {ANSWER_WITHIN_S:g} s")
    return line.recv()


async def closed(line: Connection) -> None:
    """Wait until the other end of a line is closed, or sends something."""
    loop = asyncio.get_running_loop()
    is_closed = asyncio.Event()
    loop.add_reader(line.fileno(), is_closed.set)
    try:
        await is_closed.wait()
    finally:
        loop.remove_reader(line.fileno())


def _serve(work: Callable[..., Coroutine[Any, Any, None]], line: Connection, *arguments: object) -> None:
    run_as_service(work(line, *arguments))
