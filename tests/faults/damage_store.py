"""A store to be damaged: made by the real adapter, in three conditions, and read in every way that an app and its command line do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from msgspec.structs import replace
from tests.faults.damage_facts import Facts, Healthy, checkpoint, copied, let_go, reading

from everlog.conformance.store.harness import (
    APP,
    HERE,
    LOG,
    MAIL,
    MAIL_STATE,
    NEXT_SLOT,
    SLOT,
    STATE,
    STOCK,
    Worker,
    behind,
    emitted,
    failed,
    finished,
    progress,
    stored,
)
from everlog.errors import EverlogError
from everlog.store import RELAY, Add, Attempt, Cause, Delete, Emitted, Hold, Put, Skip, Slot, Timer
from everlog.stores.sqlite.store import SqliteStore
from everlog.testing.clock import ManualClock

_FILE: Final = "shop.db"
_SLOTS: Final = (SLOT, NEXT_SLOT, Slot(MAIL, 0))
_BIG: Final = tuple(f'["big",{number}]' for number in range(4))
_COUNT, _GONE, _LAST, _NEW = '["count"]', '["gone"]', '["last"]', '["new"]'


def _row(number: int) -> str:
    return f'["row",{number}]'


def _text(number: int, size: int) -> bytes:
    """Return JSON of at least so many bytes, of which no two pages are alike."""
    return b'"%s"' % b"".join(b"%d.%d " % (number, at) for at in range(size // 8))


def _large(hold: Hold, number: int) -> Hold:
    """Return it with data that needs pages of its own."""
    return replace(hold, record=replace(hold.record, data=_text(number, 9_000)))


async def healthy(folder: Path) -> Mapping[str, Healthy]:
    """Return the store in each condition: killed with everything in the WAL, killed with a half reused WAL, closed."""
    path = folder / _FILE
    store = SqliteStore(
        path, clock=ManualClock(), lease_s=600
    )  # it has no heartbeat meanwhile, so that no commit comes by chance
    await store.open()
    await store.register(APP, log=LOG)
    worker = Worker(store, await store.join({STOCK: [], MAIL: []}, alive_s=3_600))
    for slot in (*_SLOTS, RELAY):
        await worker.take(slot)
    await _work(worker, 0)
    early = copied(path)
    await _work(worker, 100)
    killed = copied(path)
    checkpoint(path)
    await _work(worker, 200)
    reused = copied(path)
    # The file ends with a long value, and has free pages before it.
    for writes in ({_GONE: Put(_text(1, 20_000))}, {_LAST: Put(_text(2, 60_000))}, {_GONE: Delete()}):
        await worker.committed(worker.writing(writes))
    store._member = None  # as a kill leaves it: nothing is given back
    await store.aclose()
    return {
        "in the WAL": Healthy(_FILE, killed, early),
        "half reused WAL": Healthy(_FILE, reused, killed),
        "closed": Healthy(_FILE, copied(path), reused),
    }


async def _work(worker: Worker, base: int) -> None:
    """Change something in every table, and delete so that pages become free."""
    store = worker.store
    large = failed(base + 8, f"large-{base}", attempts=12)
    await worker.committed(worker.unit("large", holds=[_large(large, base)]))
    await worker.committed(
        worker.writing({_row(base + number): Put(_text(base + number, 100)) for number in range(60)}),
        worker.writing({_COUNT: Add(1), _GONE: Put(_text(base, 20_000))}),
        worker.writing({name: Put(_text(base + number, 3_000 * (number + 1))) for number, name in enumerate(_BIG)}),
        worker.unit(slot=Slot(MAIL, 0), writes={(MAIL_STATE, f"[{base}]"): Put(b"1")}, emits=[emitted(base, key=None)]),
        progress=[progress(base + 40, [base + 3, base + 7, base + 9])],
    )
    await worker.committed(worker.writing({_GONE: Delete()}), worker.writing({_row(base + 5): Delete()}))
    unreadable = Hold(f"unreadable-{base}", stored(base + 4), Cause.UNREADABLE, 0, "version 2 is unknown", "", None)
    await worker.committed(
        worker.unit("k", holds=[failed(base, attempts=2, next_attempt_us=base * 1_000_000), behind(base + 1)]),
        worker.unit("parked", holds=[failed(base + 2, f"parked-{base}", attempts=12), unreadable]),
        worker.unit(skips=[Skip("skipped", stored(base + 6), "ValueError: no")]),
        worker.unit(timers=[Timer("reminder", f"k{base}", base, Emitted(HERE.topic, emitted(base).record))]),
        worker.unit(
            emits=[emitted(base + number, key=f"k{base}", partition=number % 2) for number in range(2, 8)],
            finishes=finished(base + 3),
        ),
        progress=[progress(base + 50, [base + 7, base + 9])],
    )
    lease = worker.leases[RELAY]
    waiting = await store.outbox(after=0, limit=1_000)
    numbered = await store.number(lease, [row.id for row in waiting[:6]])
    await store.number(lease, [], done=[row.id for row in numbered[:2]])
    await store.refuse(lease, numbered[3].id, "EventTooLarge: no")
    await store.attempt(worker.leases[NEXT_SLOT], Attempt([(HERE, number[1]) for number in finished(base, base + 1)]))
    await store.request(STOCK, f"parked-{base}", "redrive")


async def look(folder: Path) -> Facts:
    """Return what is found: at the opening, by reading, by `verify`, and by a commit."""
    facts, clock = Facts(), ManualClock()
    clock.advance(10_000)  # whoever owned the slots is silent
    store = SqliteStore(folder / _FILE, clock=clock, lease_s=600)
    try:
        await store.open()
    except EverlogError as error:
        facts.at_open = error
        await let_go(store._database)
        return facts
    try:
        await _read(store, facts)
        facts.verified = list(await store.verify())
        await _commit(store, facts)
    finally:
        async with reading(facts, "close"):
            await store.aclose()
    return facts


async def look_again(folder: Path, facts: Facts) -> None:
    """Note what became of the unit that was committed behind the damage, once the store was closed."""
    store = SqliteStore(folder / _FILE, clock=ManualClock(), lease_s=600)
    async with reading(facts, "commit, later"):
        try:
            await store.open()
        except EverlogError:
            await let_go(store._database)
            raise
        try:
            facts.read["commit, later"] = [row.value for row in await store.read([(STATE, _NEW), (STATE, _COUNT)])]
        finally:
            await store.aclose()


async def _read(store: SqliteStore, facts: Facts) -> None:
    facts.read["identity"] = (store.identity, store.incarnation)
    async with reading(facts, "status"):
        facts.read["status"] = await store.status()
    for state in (STATE, MAIL_STATE):
        async with reading(facts, f"rows of {state}"):
            facts.read[f"rows of {state}"] = await store.scan(state, "[]")
    for key in (*_BIG, _COUNT, _GONE, _LAST, *(_row(base + number) for base in (0, 100, 200) for number in (0, 5, 30, 59))):
        async with reading(facts, f"row {key}"):
            facts.read[f"row {key}"] = await store.read([(STATE, key)])
    for slot in _SLOTS:
        async with reading(facts, f"due of {slot}"):
            facts.read[f"due of {slot}"] = await store.due(slot)
    for key in ("k", *(f"{what}-{base}" for base in (0, 100, 200) for what in ("parked", "unreadable", "large"))):
        async with reading(facts, f"held of {key}"):
            facts.read[f"held of {key}"] = await store.held(SLOT, key, limit=100)
    for what, ask in (("parked", store.parked), ("skipped", store.skipped), ("issued", store.issued)):
        async with reading(facts, what):
            facts.read[what] = await ask()
    async with reading(facts, "requests"):
        facts.read["requests"] = await store.requests(_SLOTS)
    async with reading(facts, "outbox"):
        facts.read["outbox"] = await store.outbox(after=0, limit=1_000)


async def _commit(store: SqliteStore, facts: Facts) -> None:
    """Start as an app does, take the slots, and commit a unit."""
    async with reading(facts, "registered"):
        facts.read["registered"] = await store.register(APP, log=LOG)
    async with reading(facts, "commit"):
        worker = Worker(store, await store.join({STOCK: [], MAIL: []}, alive_s=3_600))
        for slot in _SLOTS:
            await worker.take(slot)
            facts.read[f"slot {slot}"] = await store.load(worker.leases[slot])
        unit = worker.writing({_NEW: Put(b"1"), _COUNT: Add(1)}, emits=[emitted(9_999)], holds=[behind(9_999)])
        outcomes = await worker.commit(unit, progress=[progress(300)])
        facts.read["commit"] = (outcomes, await store.read([(STATE, _NEW), (STATE, _COUNT)]))
