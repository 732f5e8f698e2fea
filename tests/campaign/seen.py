"""What was seen of a campaign: the journals of its processes, the log and the stores at the end, and samples of memory and files meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from tests.campaign.crew import Crew
from tests.campaign.journal import Happened, read_into
from tests.campaign.part import name_of
from tests.campaign.plan import Plan, Result, Sample
from tests.campaign.services import APPS, LEDGERS, SHARED_EVERY, TOPICS, Row

from everlog.conformance.history import Effect, History
from everlog.log import Log
from everlog.position import BEGINNING
from everlog.store import Slot, Store

_ROWS: Final = msgspec.json.Decoder(Row)


async def history_of(folder: Path, log: Log, stores: Mapping[str, Store], result: Result) -> History:
    """Return all that is known of what happened, and count it in the result."""
    history = History()
    for path in sorted((folder / "journals").iterdir()):
        for line in read_into(history, path):
            if isinstance(line, Happened):
                result.injected[line.kind] += 1
                result.survived[line.kind] += 1
            else:
                result.latencies.append((line.at_s, line.took_s))
        if path.name.startswith("follower"):
            history.reads_all(path.stem)
    result.published = len(history.sent)
    result.unanswered = len(history.sent) - len(history.answers)
    for name in sorted({name for topics in TOPICS.values() for name in topics}):
        for where, offset in (await log.first(name)).offsets.items():
            history.gone(where, offset)
        await _read_all(log, history, name)
    for app in APPS:
        await _effects(stores[app], history, app)
        await _waiting(stores[app], history, app, may_wait=result.plan.bug is not None)
    for event in [seen for row in history.effects["billing"].values() for seen in row]:
        history.emits("billing", event.event, -int(event.event))
    result.emitted = len(history.emitted)
    return history


async def _read_all(log: Log, history: History, topic: str) -> None:
    first, head = (await log.first(topic)).offsets, (await log.head(topic)).offsets
    for where, last in head.items():
        reader = log.reader({where: first.get(where, BEGINNING)})
        through = first.get(where, BEGINNING)
        while through < last:
            batch = await reader.next()
            for chunk in batch.chunks:
                for index in range(chunk.start, chunk.length):
                    record = chunk.record(index)
                    history.read("the end", where, record.offset, name_of(record.type, record.data), record.key)
            through = batch.through[where]
        reader.close()


async def _effects(store: Store, history: History, app: str) -> None:
    history.subscribes(app, TOPICS[app])
    for row, effects in await _rows(store, LEDGERS[app]):
        history.applied(app, row, effects)
    if app == "billing":
        history.subscribes("billing's shared rows", TOPICS[app], lambda name: int(name) % SHARED_EVERY == 0)
        for row, effects in await _rows(store, "shared/1"):
            history.applied("billing's shared rows", row, effects)


async def _rows(store: Store, state: str) -> Sequence[tuple[str, Sequence[Effect]]]:
    rows: list[tuple[str, Sequence[Effect]]] = []
    for key, row in await store.scan(state, "[]"):
        if row.value is not None:
            effects = [Effect(name, epoch) for name, epoch in _ROWS.decode(row.value)]
            rows.append((str(msgspec.json.decode(key)[0]), effects))
    return rows


async def _waiting(store: Store, history: History, app: str, *, may_wait: bool) -> None:
    """Note what is held for another attempt: with a seeded bug a key can be so at the end, and its events are not lost."""
    for key in await store.parked(limit=1_000_000):
        if not may_wait:
            raise AssertionError(f"{app} still holds {key.records} events of key {key.key!r}: nothing here is parked")
        for held in await store.held(Slot(key.subscription, key.first.slot), key.key, limit=key.records):
            name = name_of(held.record.type, held.record.data)
            history.held(app, name)
            if app == "billing":
                history.held("billing's shared rows", name)


async def watch(crew: Crew, folder: Path, plan: Plan, result: Result) -> None:
    """Look at the processes that are never killed, now and then, until cancelled."""
    began_s = time.monotonic()
    while True:
        await asyncio.sleep(max(0.5, plan.seconds / 200))
        memory: dict[str, int] = {}
        files: dict[str, int] = {}
        for role, processes in crew.live.items():
            if role != "janitor" and processes and processes[0].child.returncode is None:
                memory[role] = _memory_kib(processes[0].child.pid)
                files[role] = _open_files(processes[0].child.pid)
        result.samples.append(Sample(time.monotonic() - began_s, memory, files, _wal_bytes(folder)))


def _memory_kib(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS")), 0)


def _open_files(pid: int) -> int:
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return 0


def _wal_bytes(folder: Path) -> int:
    """Of the largest one."""
    return max([path.stat().st_size for path in folder.glob("*-wal")], default=0)
