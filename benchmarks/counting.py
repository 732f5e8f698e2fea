"""An app that counts events, for `everlog run`: at the last one it prints the most memory that its process ever had, and stops."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

from benchmarks.sample import OrderPlaced
from everlog import App, Delivery

app = App("counting", delivery=Delivery(start="beginning"))
left = int(os.environ.get("BENCHMARK_EVENTS", "0"))


@app.on(OrderPlaced)
async def count(_: OrderPlaced) -> None:
    global left  # noqa: PLW0603 one number, and no call more than the handler
    left -= 1
    if left == 0:
        print(f"peak {peak_bytes()}", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)


def peak_bytes() -> int:
    """Return the most bytes that this process ever had in memory."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # On Linux a new process inherits `ru_maxrss` from the one that started it.
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return 1024 * int(lines["VmHWM"].split()[0])
