"""The watchdog: ends a process whose event loop a handler has blocked, and leaves a note of which one it was."""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, Final, NoReturn

_LOOK_EVERY_S: Final = 0.5


class Watchdog:
    """A thread that counts for how long the event loop has not turned.

    It counts its own looks and not the time between two of them: a process that was stopped, or a machine that slept, blocked nothing.

    Args:
        limit_s: For how long the loop may be blocked, in seconds.
        accuse: Stores what the handler that runs in this task is called for; returns whose it is, or ``None`` where it is no handler.
        end: Ends the process, and says why.
    """

    def __init__(
        self, limit_s: float, *, accuse: Callable[[asyncio.Task[Any] | None], str | None], end: Callable[[str], NoReturn]
    ) -> None:
        self._limit_s = limit_s
        self._accuse = accuse
        self._end = end
        self._has_turned = True
        self._is_closed = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._thread_id = 0

    def start(self) -> None:
        """Begin to watch the running event loop, from now on: the very next handler may block it. `run` has to be a task at once."""
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        threading.Thread(target=self._watch, name="everlog-watchdog", daemon=True).start()

    async def run(self) -> None:
        """Show that the event loop turns, until cancelled."""
        try:
            while True:
                self._has_turned = True
                await asyncio.sleep(_LOOK_EVERY_S)
        finally:
            self.close()

    def close(self) -> None:
        """Watch no more. Idempotent; for a `run` that never began."""
        self._is_closed.set()

    def _watch(self) -> None:
        blocked_s = 0.0
        while not self._is_closed.wait(_LOOK_EVERY_S):
            blocked_s = 0.0 if self._has_turned else blocked_s + _LOOK_EVERY_S
            self._has_turned = False
            if blocked_s >= self._limit_s:
                self._give_up(blocked_s)

    def _give_up(self, blocked_s: float) -> None:
        frame = sys._current_frames().get(self._thread_id)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] the only way to another thread's stack
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        task = asyncio.current_task(self._loop)
        whose = self._accuse(task) or "something that is no handler"
        self._end(
            f"{whose} has blocked the event loop for {blocked_s:g} s: the process ends, so that its event can be kept apart. Await what "
            f"takes long, or make the handler a plain function, which runs in a thread. It was here:\n{stack}"
        )
