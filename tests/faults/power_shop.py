"""The shop of `tests.processes`, on a recording VFS. Run as `python -m tests.faults.power_shop worker|publisher|keeper|breaker BUG FOLDER TRACE …`."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, cast

import apsw
from tests.faults.vfs import Fault, Faults, Recorder, Trace, install
from tests.processes import shop
from tests.processes.shop import KEYS, Ordered, app, orders

from everlog import Settings
from everlog.client.client import Client
from everlog.clock import SystemClock
from everlog.drivers.sqlite import database
from everlog.drivers.sqlite.connection import connect
from everlog.drivers.sqlite.database import Database, Group, OutcomeUnknown
from everlog.key import partition_of
from everlog.logs.sqlite import open_log
from everlog.position import Offset, Position
from everlog.runtime import opened_log
from everlog.store import Lease, Progress, Slot, Unit
from everlog.stores.sqlite import open_store
from everlog.subscriptions.committer import Committer

LOG: Final = "log.db"
STORE: Final = "shop.db"
CHECKPOINT_PAGES: Final = 40
"""A WAL of so many pages is brought into the file, that cuts meet checkpoints."""
KEEPS_RECORDS: Final = 4
"""What the keeper leaves of each partition."""
_ROUND_S: Final = 0.15


def settings_of(folder: Path) -> Settings:
    return Settings(log_url=f"sqlite:{folder / LOG}", store_url=f"sqlite:{folder / STORE}", lease_s=1.0, grace_s=5)


def name_of(by: str, n: int) -> str:
    """Return what an event is called when it is judged."""
    return f"{by}:{n}"


# ---- what is seeded ----


def seed_a_bug(name: str) -> None:
    """Break this process on purpose, for the positive controls."""
    if name == "acknowledges before the sync":

        def unsynced(*parts: Any, **named: Any) -> apsw.Connection:
            connection = connect(*parts, **named)
            connection.pragma("synchronous", "off")
            return connection

        database.connect = unsynced  # type: ignore[attr-defined]
    elif name == "builds on what was not synced":

        def left_out(self: Database[Any, Any]) -> None:
            self._suspect = False

        Database._sync_all = left_out  # type: ignore[method-assign]
    elif name == "tells what it has not committed":
        _tell_what_is_not_committed()
    elif name == "progress before effects":
        stored = Committer._stored

        async def torn(
            self: Committer, units: Sequence[Unit], leases: Sequence[Lease], progress: Sequence[tuple[Slot, Progress]]
        ) -> Any:
            if units:
                await stored(self, [], leases, progress)
            return await stored(self, units, leases, progress)

        Committer._stored = torn  # type: ignore[method-assign]


def _tell_what_is_not_committed() -> None:
    whole: Callable[[Database[Any, Any], Sequence[Any]], Sequence[Any]] = cast("Any", Database)._transaction

    def told(self: Database[Any, Any], jobs: Sequence[Any]) -> Sequence[Any]:
        applied: list[Any] = []
        apply = self._apply

        def remembered(group: Group, jobs: Sequence[Any]) -> Sequence[Any]:
            applied[:] = apply(group, jobs)
            return applied

        self._apply = remembered
        try:
            results = whole(self, jobs)
        finally:
            self._apply = apply
        return applied if any(isinstance(one, OutcomeUnknown) for one in results) else results

    Database._transaction = told  # type: ignore[method-assign]


def checkpoint_often(pages: int = CHECKPOINT_PAGES) -> None:
    """Bring the WAL into the file much more often than is usual."""
    usual = database.connect  # type: ignore[attr-defined]

    def connected(*parts: Any, **named: Any) -> apsw.Connection:
        connection = usual(*parts, **named)
        connection.wal_autocheckpoint(pages)
        return connection

    database.connect = connected  # type: ignore[attr-defined]


# ---- processes ----


async def publish(trace: Trace, folder: Path, name: str, seed: int, count: int) -> None:
    """Publish numbered events, and record what is sent and what is told."""
    dice = random.Random(seed)
    async with app.connect(settings_of(folder)) as client:
        shop.say("ready")
        n = 0

        async def sender(number: int) -> None:
            nonlocal n
            while n < count:
                size = dice.choice((1, 1, 3, 10))
                batch = [Ordered(dice.choice(KEYS[number::4]), n + at, name) for at in range(size)]
                n += size
                await _publish(trace, client, f"{name}/{number}", batch)
                await asyncio.sleep(shop.PAUSE_S)

        await asyncio.gather(*[sender(number) for number in range(4)])
    shop.say("done")


async def _publish(trace: Trace, client: Client, sender: str, batch: Sequence[Ordered]) -> None:
    names = [name_of(event.by, event.n) for event in batch]
    trace.mark(what="send", sender=sender, events=[[one, event.key] for one, event in zip(names, batch, strict=True)])
    published = await client.publish(*batch)
    # Those of one partition are stored together, so the place of the last one tells those of the others.
    last = {where.partition: offset for where, offset in published.position.offsets.items()}
    offsets: list[int] = []
    for event in reversed(batch):
        partition = partition_of(event.key, orders.partitions)
        offsets.append(last[partition])
        last[partition] = Offset(last[partition] - 1)
    places = [
        [partition_of(event.key, orders.partitions), offset] for event, offset in zip(batch, reversed(offsets), strict=True)
    ]
    trace.mark(what="told", events=[[one, *place] for one, place in zip(names, places, strict=True)])


async def work(folder: Path) -> None:
    """Run the app until SIGTERM."""
    from everlog.runtime import run_apps

    await run_apps([app.declaration()], settings_of(folder), on_ready=lambda _: shop.say("ready"))


async def keep(trace: Trace, folder: Path) -> None:
    """Delete what is handled, again and again, and record what may be gone before it is."""
    settings = settings_of(folder)
    log = await open_log(settings.log_url, clock=SystemClock())
    store = await open_store(settings.store_url, clock=SystemClock(), lease_s=settings.lease_s)
    shop.say("ready")
    while True:
        await asyncio.sleep(_ROUND_S)
        for subscription in (await store.status()).subscriptions:
            handled = {one.where: min([one.through + 1, *one.unfinished]) - 1 for one in subscription.progress}
            through = {where: offset - KEEPS_RECORDS for where, offset in handled.items() if where.topic == orders.name}
            trace.mark(what="trim", through=[[*where, offset] for where, offset in through.items()])
            before = {where: Offset(offset) for where, offset in through.items() if offset >= 0}
            await log.trim(orders.name, Position(log.identity, before))


async def fail_a_sync(recorder: Recorder, trace: Trace, folder: Path) -> None:
    """Publish; then one sync of the WAL fails, and the process is gone. The WAL holds one older commit by then, of other pages."""
    async with opened_log(settings_of(folder), SystemClock()) as log, app.connect(settings_of(folder)) as client:
        await _publish(trace, client, "breaker", [Ordered("k0", n, "breaker") for n in range(3)])
        log._database._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)  # type: ignore[attr-defined]
        await log.ensure_topic(orders.spec())  # changes nothing but the number of the commit
        recorder.faults.arm(Fault("xSync", f"{LOG}-wal", apsw.SQLITE_IOERR_FSYNC, 1))
        lost = asyncio.ensure_future(_publish(trace, client, "breaker", [Ordered("k1", 3, "breaker")]))
        while not recorder.faults.failed:  # noqa: ASYNC110 the writer's thread meets it, and tells nobody
            await asyncio.sleep(0)
        lost.cancel()
        os._exit(0)


def main(arguments: Sequence[str]) -> None:
    role, bug, folder, traced, *more = arguments
    trace = Trace(Path(traced))
    unsynced = "-wal" if bug == "no sync of the WAL" else ""
    recorder = install(trace, Faults(), unsynced=unsynced)
    seed_a_bug(bug)
    checkpoint_often()
    match role, more:
        case "worker", []:
            asyncio.run(work(Path(folder)))
        case "publisher", [name, seed, count]:
            asyncio.run(publish(trace, Path(folder), name, int(seed), int(count)))
        case "keeper", []:
            asyncio.run(keep(trace, Path(folder)))
        case "breaker", []:
            asyncio.run(fail_a_sync(recorder, trace, Path(folder)))
        case _:
            raise SystemExit(f"expected a role and what it needs, found {arguments}")


if __name__ == "__main__":
    main(sys.argv[1:])
