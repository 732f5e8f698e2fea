"""Opens what a power cut left, as a machine that starts again does, and judges it by what was told before the cut."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.faults.power_found import Found, lines_in, read, rows_in
from tests.faults.power_shop import LOG, STORE, settings_of
from tests.processes.shop import LINE_EVERY, SHARE_EVERY, Done, app, group_of, orders

from everlog.clock import SystemClock
from everlog.conformance.history import Effect, History, Told
from everlog.conformance.judge import judge
from everlog.contracts.contract import contract_of
from everlog.errors import EverlogError
from everlog.log import Log
from everlog.logs.sqlite import open_log
from everlog.position import TopicPartition
from everlog.runtime import AppRuntime
from everlog.store import Store
from everlog.stores.sqlite import open_store

SUBSCRIPTION: Final = "shop"
_SETTLES_WITHIN_S: Final = 30.0


@dataclass
class Knowledge:
    """What people outside the machine knew when the power went."""

    acknowledged: Mapping[str, int] = field(default_factory=dict[str, int])
    """Commit number of each file that somebody may have been told of."""
    marks: list[Mapping[str, Any]] = field(default_factory=list[Mapping[str, Any]])


def history_of(known: Knowledge) -> History:
    """Return the publishers' part of the history."""
    history = History()
    for mark in known.marks:
        match mark["what"]:
            case "send":
                for event, key in mark["events"]:
                    history.sends(mark["sender"], event, orders.name, key)
                    history.emits(SUBSCRIPTION, event, f"done {event}")
            case "told":
                for event, partition, offset in mark["events"]:
                    history.told(event, Told.STORED, TopicPartition(orders.name, partition), offset)
            case _:
                pass
    return history


@asynccontextmanager
async def opened(folder: Path) -> AsyncGenerator[tuple[Log, Store]]:
    """Open log and store of an image."""
    settings = settings_of(folder)
    log = await open_log(settings.log_url, clock=SystemClock())
    try:
        store = await open_store(settings.store_url, clock=SystemClock(), lease_s=settings.lease_s)
        try:
            yield log, store
        finally:
            await store.aclose()
    finally:
        await log.aclose()


async def faults_of(folder: Path, known: Knowledge, *, run: bool) -> list[str]:
    """Return what is wrong with an image, a line each: as it is found, and with `run` also when a worker has gone on from there."""
    try:
        async with opened(folder) as (log, store):
            faults = await _sound(log, store, known)
            faults.extend(await _as_found(log, store, known))
            if not run or faults:
                return faults
            await _work(folder, log, store)
            return [f"after the worker had gone on: {line}" for line in await _at_the_end(log, store, known)]
    except EverlogError as error:
        return [f"refused: {type(error).__name__}: {error}"]
    except Exception as error:  # whatever a file that fits together by no rule does to those who read it
        return [f"broken: {type(error).__name__}: {error}"]


# ---- judging ----


async def _sound(log: Log, store: Store, known: Knowledge) -> list[str]:
    """Return what the files say against themselves, and which commits are missing that somebody was told of."""
    faults = [*await log.verify(), *await store.verify()]
    ports: Sequence[tuple[str, Log | Store]] = ((LOG, log), (STORE, store))
    for name, port in ports:
        ((number,),) = rows_in(port, "SELECT number FROM head")
        told = known.acknowledged.get(name, 0)
        if number < told:
            faults.append(f"{name}: commit {told} was acknowledged, and the file ends at {number}")
    return faults


def _note(history: History, found: Found) -> None:
    for where, records in found.logged.items():
        history.gone(where, found.first[where])
        for offset, event, key in records:
            history.read("reader", where, offset, event, key)
    for record in found.emitted:
        done = contract_of(Done).decode(record.data)
        where = TopicPartition(record.topic, record.partition)
        history.read("reader", where, record.offset, f"done {done.text}", done.key)
    for key, events in found.journal.items():
        history.applied(SUBSCRIPTION, key, [Effect(event) for event in events])
    for event in found.held:
        history.held(SUBSCRIPTION, event)


async def _as_found(log: Log, store: Store, known: Knowledge) -> list[str]:
    """Judge what the cut left, before anybody has mended anything."""
    found = await read(log, store)
    history = history_of(known)
    _note(history, found)
    outbox = await store.outbox(after=0, limit=1_000_000)
    faults = _rows_that_disagree(found)
    in_log = {f"done {contract_of(Done).decode(record.data).text}" for record in found.emitted}
    in_outbox: set[str] = set()
    for row in outbox:
        event = f"done {contract_of(Done).decode(row.emitted.record.data).text}"
        in_outbox.add(event)
        if row.sequence is None and event in in_log:
            faults.append(f"{event} is in the log, and the outbox has not given it a number")
        history.emitted.pop(event, None)  # on its way
        if event in in_log:
            history.emits(SUBSCRIPTION, event.removeprefix("done "), event)
    known_emissions = in_log | in_outbox
    faults.extend(
        f"{event} shows its effect, and what it emitted is neither in the outbox nor in the log"
        for events in found.journal.values()
        for event in events
        if f"done {event}" not in known_emissions
    )
    faults.extend(await _progress_that_disagrees(store, found))
    faults.extend(_deleted_too_much(found, known))
    return faults + [str(fault) for fault in judge(history)]


async def _progress_that_disagrees(store: Store, found: Found) -> list[str]:
    """An event is finished by progress if and only if its effect shows, or it is held."""
    faults: list[str] = []
    shown = {event for events in found.journal.values() for event in events}
    for subscription in (await store.status()).subscriptions:
        for progress in subscription.progress:
            for offset, event, _ in found.logged.get(progress.where, ()):
                is_finished = offset <= progress.through and offset not in progress.unfinished
                is_there = event in shown or event in found.held
                if is_finished is not is_there:
                    faults.append(
                        f"{event} at offset {offset} of {progress.where}: {'finished' if is_finished else 'not finished'} by progress, "
                        f"its effect {'shows' if is_there else 'does not show'}"
                    )
            if progress.through > max(
                [offset for offset, _, _ in found.logged[progress.where]], default=found.first[progress.where]
            ):
                faults.append(f"progress of {progress.where} is at {progress.through}, behind the end of the log")
    return faults


def _rows_that_disagree(found: Found) -> list[str]:
    """Sums in other rows, and lines in a table of the app's own, are of the same commits as the journal."""
    events = [(key, *event.split(":")) for key, listed in found.journal.items() for event in listed]
    totals: dict[str, int] = {}
    shared: dict[str, int] = {}
    for key, _, n in events:
        totals[group_of(key)] = totals.get(group_of(key), 0) + int(n) + 1
        if int(n) % SHARE_EVERY == 0:
            shared[group_of(key)] = shared.get(group_of(key), 0) + 1
    faults: list[str] = []
    for name, expected in (("totals/1", totals), ("shared/1", shared)):
        if found.rows[name] != expected:
            faults.append(f"{name}: expected {expected} by the journal, found {json.dumps(found.rows[name])}")
    return faults


def _deleted_too_much(found: Found, known: Knowledge) -> list[str]:
    asked: dict[TopicPartition, int] = {}
    for mark in known.marks:
        if mark["what"] == "trim":
            for topic, partition, through in mark["through"]:
                asked[TopicPartition(topic, partition)] = max(through, asked.get(TopicPartition(topic, partition), -1))
    return [
        f"{where}: deleted through {through}, and only {asked.get(where, -1)} was asked for"
        for where, through in found.first.items()
        if through > asked.get(where, -1)
    ]


# ---- going on ----


async def _work(folder: Path, log: Log, store: Store) -> None:
    """Run the app on an image until everything is handled and sent."""
    runtime = AppRuntime(app.declaration(), log, settings_of(folder), SystemClock())
    stop = asyncio.Event()
    running = asyncio.create_task(runtime.run(stop))
    try:
        async with asyncio.timeout(_SETTLES_WITHIN_S):
            while not await is_settled(log, store):
                if running.done():
                    running.result()
                    raise AssertionError("the worker ended by itself")
                await store.wait(0.1)
    finally:
        stop.set()
        with contextlib.suppress(EverlogError):
            await running


async def is_settled(log: Log, store: Store) -> bool:
    status = await store.status()
    if not status.subscriptions or not all(one.progress for one in status.subscriptions):
        return False
    heads = (await log.head(orders.name)).offsets
    return not status.outbox and all(
        not one.unfinished and one.through >= heads[one.where] and not subscription.held_records
        for subscription in status.subscriptions
        for one in subscription.progress
    )


async def _at_the_end(log: Log, store: Store, known: Knowledge) -> list[str]:
    found = await read(log, store)
    history = history_of(known)
    _note(history, found)
    history.subscribes(SUBSCRIPTION, [orders.name])
    faults = _rows_that_disagree(found)
    lines = await lines_in(store)
    faults.extend(
        f"{key}: its lines are not those of its journal"
        for key, events in found.journal.items()
        if [event for k, event in lines if k == key] != [event for event in events if int(event.split(":")[1]) % LINE_EVERY == 0]
    )
    in_log = {f"done {contract_of(Done).decode(record.data).text}" for record in found.emitted}
    faults.extend(
        f"what {event} emitted is not in the log"
        for events in found.journal.values()
        for event in events
        if f"done {event}" not in in_log
    )
    return faults + [str(fault) for fault in judge(history)]
