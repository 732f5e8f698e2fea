"""An app that writes down and publishes what it handles, its log and its store in files, and processes on them that somebody puts back."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.cli.shop import EVERLOG, PATIENCE_S, Start

from everlog.clock import SystemClock
from everlog.conformance.history import Effect, History, Told
from everlog.conformance.judge import judge
from everlog.logs.sqlite import open_log
from everlog.position import TopicPartition
from everlog.record import StoredRecord
from everlog.stores.sqlite import open_store

CHAIN = """
from everlog import App, Delivery, Event, Topic, Tx

orders = Topic("chain.orders", key="id", partitions=2)
bills = Topic("chain.bills", key="id", partitions=2)


@orders.event("chain.ordered/1")
class Ordered(Event):
    id: str
    n: int


@bills.event("chain.billed/1")
class Billed(Event):
    id: str
    n: int


app = App("chain", delivery=Delivery(start="beginning", on_gap="oldest"))
seen = app.state("seen/1", list[int])


@app.on(Ordered)
async def bill(event: Ordered, tx: Tx) -> Billed:
    print(f"bills {event.n}", flush=True)
    tx.put(seen, event.id, [*(await tx.get(seen, event.id, list[int]())), event.n])
    return Billed(event.id, event.n)


quiet = App("quiet", delivery=Delivery(start="beginning"))
noted = quiet.state("noted/1", list[int])


@quiet.on(Ordered)
async def note(event: Ordered, tx: Tx) -> None:
    print(f"notes {event.n}", flush=True)
    tx.put(noted, event.id, [*(await tx.get(noted, event.id, list[int]())), event.n])
"""

UNCHECKED = """
from chain import app

from everlog import runtime
from everlog.subscriptions.fit import compare


async def check_nothing(app, log, store, registered):
    return await compare(app, log, store)


runtime.check_log = check_nothing
"""
"""The bug that the checks are there for."""

BLIND = """
from chain import app

from everlog.subscriptions import fit


async def sees_every_landmark(*rest):
    return True


fit._holds = sees_every_landmark
"""
"""The bug that landmarks are there for: as long as the offsets fit, all is well."""


class Found(NamedTuple):
    """What is there at the end."""

    orders: Sequence[tuple[str, int]]
    bills: Sequence[tuple[str, int]]
    ids: Sequence[str]
    seen: dict[str, list[int]]
    faults: Sequence[str]
    """What the judge says of all that the log still holds."""


def key_of(n: int) -> str:
    return f"k{n % 3}"


class Restored:
    """The files of one folder, and who works on them."""

    def __init__(self, folder: Path, start: Start) -> None:
        self.folder = folder
        self.files = folder / ".everlog"
        self._start = start
        for name, text in (("chain", CHAIN), ("unchecked", UNCHECKED), ("blind", BLIND)):
            (folder / f"{name}.py").write_text(text)

    def everlog(self, *arguments: str, code: int = 0, stdin: str = "") -> str:
        """Run a command to its end, and return all that it said."""
        done = subprocess.run([EVERLOG, *arguments], input=stdin, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def publish(self, *numbers: int) -> None:
        lines = "".join(json.dumps({"id": key_of(n), "n": n}) + "\n" for n in numbers)
        self.everlog("publish", "chain", "chain.ordered/1", stdin=lines)

    def work(self, *numbers: int, module: str = "chain:app", flags: Sequence[str] = ()) -> str:
        """Let the app run until it has handled these, in any order, and end it; return what it said."""
        worker = self._start("run", module, *flags)
        worker.wait_for("is running")
        for _ in numbers:
            worker.wait_for("notes " if module.endswith("quiet") else "bills ")
        assert worker.end(signal.SIGTERM) == 0, worker.text  # with its outbox sent
        handled = sorted(int(line.split()[1]) for line in worker.lines if line.startswith(("bills ", "notes ")))
        assert handled == sorted(numbers), worker.text
        return worker.text

    def note(self, *numbers: int, module: str = "notes_of_late:late") -> None:
        """The same for an app that notes them."""
        worker = self._start("run", module)
        worker.wait_for("is running")
        for _ in numbers:
            worker.wait_for("notes ")
        assert worker.end(signal.SIGTERM) == 0, worker.text
        assert sorted(int(line.split()[1]) for line in worker.lines if line.startswith("notes ")) == sorted(numbers), worker.text

    def run_once(self, module: str) -> None:
        """Start the app, and stop it once it runs: what it has begun is finished."""
        worker = self._start("run", module)
        worker.wait_for("is running")
        assert worker.end(signal.SIGTERM) == 0, worker.text

    def refused(self, module: str = "chain:app") -> str:
        """Start the app, which has to be refused; return why."""
        worker = self._start("run", module)
        assert worker.end() == 4, worker.text
        return worker.text

    def back_up(self, name: str, *apps: str) -> None:
        self.everlog("backup", name, *(apps or ("chain",)))

    def put_by_hand(self, backup: str, name: str) -> None:
        """Put a copy in the place of a file as somebody does who knows what is beside it, and no more."""
        for side in ("", "-wal", "-shm", "-bell"):
            (self.files / f"{name}{side}").unlink(missing_ok=True)
        shutil.copy(self.folder / backup / name, self.files / name)

    def restore(self, *arguments: str, code: int = 0) -> str:
        return self.everlog("restore", *arguments, "--yes", code=code)

    def found(self, state: str = "seen/1", app: str = "chain") -> Found:
        return asyncio.run(self._found(state, app))

    async def _found(self, state: str, app: str) -> Found:
        log = await open_log(f"sqlite:{self.files / 'log.db'}", clock=SystemClock())
        store = await open_store(f"sqlite:{self.files / f'{app}.db'}", clock=SystemClock())
        try:
            records: list[StoredRecord] = []
            for topic in {topic.name for topic in await log.topics()} & {"chain.orders", "chain.bills"}:
                first, head = await log.first(topic), await log.head(topic)
                left = {where: at for where, at in head.offsets.items() if at > first.offsets[where]}
                reader = log.reader({where: first.offsets[where] for where in left})
                while left:
                    batch = await reader.next()
                    records.extend(batch.records())
                    left = {where: at for where, at in left.items() if batch.through.get(where, -1) < at}
                reader.close()
            rows = await store.scan(state, "[]")
            seen = {json.loads(key)[0]: json.loads(row.value) for key, row in rows if row.value is not None}
            status = await store.status()
            assert status.outbox == 0
        finally:
            await store.aclose()
            await log.aclose()
        orders = [one for one in records if one.topic == "chain.orders"]
        bills = [one for one in records if one.topic == "chain.bills"]
        faults = [str(fault) for fault in judge(_history(orders, bills, seen))] if state == "seen/1" else []
        pairs = [[(data["id"], data["n"]) for one in part if (data := json.loads(one.data))] for part in (orders, bills)]
        return Found(pairs[0], pairs[1], [one.id for one in bills], seen, faults)


def _history(orders: Sequence[StoredRecord], bills: Sequence[StoredRecord], seen: dict[str, list[int]]) -> History:
    """Return what is known of the orders that the log still holds, and of what they oblige the app to."""
    history = History()
    history.subscribes("chain", ["chain.orders"])
    kept = {json.loads(one.data)["n"] for one in orders}
    for one in sorted(orders, key=lambda record: record.logged_at_us):
        name = f"order {json.loads(one.data)['n']}"
        history.sends("publisher", name, one.topic, one.key)
        history.told(name, Told.STORED)
        history.emits("chain", name, name.replace("order", "bill"))
    for one in [*orders, *bills]:
        data = json.loads(one.data)
        if data["n"] in kept:
            word = "order" if one.topic == "chain.orders" else "bill"
            history.read("reader", TopicPartition(one.topic, one.partition), one.offset, f"{word} {data['n']}", one.key)
    for key, numbers in seen.items():
        history.applied("chain", key, [Effect(f"order {n}") for n in numbers if n in kept])
    return history
