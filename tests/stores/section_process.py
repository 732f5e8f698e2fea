"""A member in a process of its own: commits one section after the other, and says each number. Started by `test_section.py`."""

from __future__ import annotations

import asyncio
import sys

from everlog.clock import SystemClock
from everlog.store import Outcome, Put, Slot, Unit
from everlog.stores.sqlite import open_store


async def main(url: str) -> None:
    store = await open_store(url, clock=SystemClock(), lease_s=600)
    joined = await store.join({"a": []}, alive_s=3_600)
    lease = await store.acquire(Slot("a", 0))
    assert lease is not None
    for number in range(1, 1_000_000):
        section = await store.section()
        await section.mark(within_s=30)
        await section.execute("INSERT INTO orders VALUES (?)", (number,))
        unit = Unit(lease.slot, None, joined.version_base + number, writes={("stock/1", f"[{number}]"): Put(b"%d" % number)})
        assert await section.apply([unit], [lease]) == [Outcome.COMMITTED]
        await section.keep()
        await section.commit()
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()


asyncio.run(main(sys.argv[1]))
