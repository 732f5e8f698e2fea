"""A member in a process of its own: takes slot 0, then obeys a line at a time. Started by `test_sqlite.py`."""

from __future__ import annotations

import asyncio
import sys

from everlog.clock import SystemClock
from everlog.store import Slot, Unit
from everlog.stores.sqlite import open_store


async def main(url: str, lease_s: float) -> None:
    store = await open_store(url, clock=SystemClock(), lease_s=lease_s)
    joined = await store.join({"a": []}, alive_s=3_600)
    lease = await store.acquire(Slot("a", 0))
    assert lease is not None
    say("owns")
    while line := sys.stdin.readline().strip():
        assert line == "commit"
        (outcome,) = await store.commit([Unit(slot=lease.slot, lane=None, version=joined.version_base + 1)], [lease], [])
        say(outcome.value)
    await store.aclose()


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


asyncio.run(main(sys.argv[1], float(sys.argv[2])))
