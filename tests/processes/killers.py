"""The apps whose handlers take their process down, started by `scene.py` as `python -m tests.processes.killers OPTIONS`.

What a handler does is in the event: `does` names one of the ways to end a process, and nothing is done once the file `mended` is there.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import msgspec

from everlog import App, Delivery, Event, Retry, Settings, Topic, Tx, runtime
from everlog.errors import HandlerExited
from everlog.store import Attempt, Lease
from everlog.stores.sqlite.store import SqliteStore
from everlog.subscriptions import delivery, engine, watchdog, worker

PARTITIONS = 2

jobs = Topic("killers.jobs", key="key", partitions=PARTITIONS)
done = Topic("killers.done", key="key", partitions=PARTITIONS)


@jobs.event("killers.job/1")
class Job(Event):
    key: str
    n: int
    does: str = ""


@done.event("killers.done/1")
class Done(Event):
    key: str
    n: int


class Options(msgspec.Struct):
    """What a worker is told."""

    log_url: str
    store_url: str
    mended: str
    """A file: while it is there, nobody kills."""
    kind: str = "async"
    """The app: `async`, `plain` or `batch`."""
    concurrency: int = 4
    time_limit_s: float = 30.0
    most: int = 1_000
    lease_s: float = 5.0
    work_s: float = 0.0
    """How long an innocent event takes at most."""
    bug: str = ""


async def die(event: Job, mended: Path) -> None:
    """Do what an event says, in the event loop."""
    match event.does:
        case "later":  # when others are through
            await asyncio.sleep(0.15)
            os._exit(9)
        case "once":
            fail_first(mended.with_name(f"tried-{event.key}-{event.n}"))
            os._exit(9)
        case "deaf":
            while True:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(3_600)
        case "block":
            time.sleep(3_600)  # noqa: ASYNC251 that is what it is about
        case _:
            die_here(event.does)


def fail_first(tried: Path) -> None:
    """Fail the first time, and come back the second."""
    if not tried.exists():
        tried.touch()
        raise RuntimeError("the first time it only fails")


def die_here(does: str) -> None:
    """End the process from any thread."""
    match does:
        case "exit":
            os._exit(9)
        case "segv":
            cast("Any", faulthandler)._sigsegv()
        case "abort":
            os.abort()
        case "oom":  # as the system does it when memory is short
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(3_600)
        case "memory":
            bytearray(1 << 60)
        case "sys.exit":
            sys.exit(3)
        case "never":
            while True:
                time.sleep(0.05)
        case _:
            raise AssertionError(f"nobody knows how to {does}")


def app_of(options: Options) -> App:
    """Return the app of a worker."""
    mended = Path(options.mended)

    def kills(event: Job) -> bool:
        return bool(event.does) and not mended.exists()

    app = App(
        "killers",
        delivery=Delivery(
            start="beginning",
            concurrency=options.concurrency,
            time_limit_s=options.time_limit_s,
            on_error={HandlerExited: Retry(attempts=3, first_s=0.01), MemoryError: Retry(attempts=3, first_s=0.01)},
        ),
    )
    counts = app.state("counts/1", int)
    dice = random.Random()

    if options.kind == "async":

        @app.on(Job)
        async def handle(event: Job, tx: Tx) -> Done:
            if options.work_s:
                await asyncio.sleep(options.work_s * dice.random())
            if kills(event):
                await die(event, mended)
            tx.add(counts, event.key, 1)
            return Done(event.key, event.n)

    elif options.kind == "plain":

        @app.on(Job)
        def handle_plainly(event: Job, tx: Tx) -> Done:
            if kills(event):
                die_here(event.does)
            tx.add(counts, event.key, 1)
            return Done(event.key, event.n)

    else:

        @app.on_batch(Job, most=options.most)
        async def handle_all(events: list[Job], tx: Tx) -> list[Done]:
            for event in events:
                if kills(event):
                    await die(event, mended)
                tx.add(counts, event.key, 1)
            return [Done(event.key, event.n) for event in events]

    return app


def hurry() -> None:
    """Make the pauses of this process short."""
    modules: Sequence[Any] = (delivery, worker, engine, watchdog, runtime)
    short = {"KILLED": Retry(attempts=3, first_s=0.05), "IGNORED_S": 0.4, "_LOOK_EVERY_S": 0.05}
    for module in modules:
        for name, value in short.items():
            if hasattr(module, name):
                setattr(module, name, value)


def seed_a_bug(name: str) -> None:
    """Break this process on purpose, for the positive controls."""
    if name == "unattempted":  # a group starts without a note of it

        async def forgotten(self: SqliteStore, lease: Lease, attempt: Attempt | None) -> None:
            pass

        SqliteStore.attempt = forgotten  # type: ignore[method-assign]
    elif name == "unaccused":

        def kept(self: SqliteStore, lease: Lease, attempt: Attempt, *, within_s: float) -> bool:
            return True

        SqliteStore.accuse = kept  # type: ignore[method-assign]
    elif name == "blind":  # whoever takes over believes that all was given back
        took = SqliteStore.acquire

        async def trusting(self: SqliteStore, slot: Any) -> Lease | None:
            lease = await took(self, slot)
            return None if lease is None else Lease(lease.slot, lease.epoch, lease.member)

        SqliteStore.acquire = trusting  # type: ignore[method-assign]


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def work(options: Options) -> None:
    """Run the app until SIGTERM, and say when it is ready."""
    settings = Settings(log_url=options.log_url, store_url=options.store_url, lease_s=options.lease_s, grace_s=5)
    await runtime.run_apps([app_of(options).declaration()], settings, on_ready=lambda _: say("ready"))


if __name__ == "__main__":
    chosen = msgspec.convert(json.loads(sys.argv[1]), Options)
    hurry()
    seed_a_bug(chosen.bug)
    asyncio.run(work(chosen))
