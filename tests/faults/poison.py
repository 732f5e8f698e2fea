"""Poison for handlers in real processes, beside what `tests.processes.killers` has: `python -m tests.faults.poison OPTIONS`.

A handler raises, hangs, or eats all the memory that its process is given.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from pathlib import Path

import msgspec
from tests.processes import killers
from tests.processes.killers import Job, Options

from everlog import Delivery, Retry
from everlog.errors import HandlerKilled
from everlog.subscriptions.delivery import Policy

ROOM_BYTES = 400 << 20
"""So much memory a process may take beside what it has when it begins."""
_PIECE_BYTES = 16 << 20

_die = killers.die
_policy = Delivery.policy


async def strike(event: Job, mended: Path) -> None:
    """Do what an event says."""
    match event.does:
        case "raises":
            raise ValueError("poison")
        case "hangs":
            await asyncio.get_running_loop().create_future()
        case "eats":
            eaten: list[bytearray] = []
            while True:
                eaten.append(bytearray(_PIECE_BYTES))
        case _:
            await _die(event, mended)


def limit_memory() -> None:
    """Let the system refuse this process more than its room."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def impatient(self: Delivery, error: BaseException) -> Policy:
    """Park after three attempts, where the default takes a minute."""
    return _policy(self, error) if isinstance(error, HandlerKilled) else Retry(attempts=3, first_s=0.01)


def forgiving(self: Delivery, error: BaseException) -> Policy:
    """The seeded bug: what fails is passed over, and nobody hears of it."""
    return "skip"


if __name__ == "__main__":
    chosen = msgspec.convert(json.loads(sys.argv[1]), Options)
    killers.die = strike
    killers.hurry()
    Delivery.policy = forgiving if chosen.bug == "forgives" else impatient  # type: ignore[method-assign]
    if sys.platform == "linux":
        limit_memory()
    asyncio.run(killers.work(chosen))
