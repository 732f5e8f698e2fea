"""Threads for handlers that are plain functions.

One hop to a thread and back costs 260 µs with `asyncio.to_thread`. Here calls wait in one line for a few threads, and what they return is
brought back in one go: the event loop is woken once for all that ended since it last looked.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from everlog.subscriptions.context import in_handler

_STUCK_S: Final = 0.001
"""After so long in the line a call gets another thread: those that are there wait for something."""


class _Call(NamedTuple):
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    done: asyncio.Future[Any]


class Threads:
    """Runs functions in at most `most` threads, made when they are needed. Used from one event loop.

    They are daemons: a function that never returns cannot keep the process.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._line: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._ended: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._is_woken = False
        self._lock = threading.Lock()
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None

    def call(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        """Return a future of what the function returns or raises. Cancelling it does not end the function."""
        done: asyncio.Future[Any] = self._loop.create_future()
        self._line.put(_Call(function, arguments, done))
        if self._count == 0:
            self._start()
        elif self._timer is None and self._count < self._most:
            self._timer = self._loop.call_later(_STUCK_S, self._look)
        return done

    def close(self) -> None:
        """Let idle threads end. Those in a function end behind it."""
        if self._timer is not None:
            self._timer.cancel()
        for _ in range(self._count):
            self._line.put(None)

    def _look(self) -> None:
        """Start another thread for what still waits."""
        self._timer = None
        if not self._line.empty() and self._count < self._most:
            self._start()
            self._timer = self._loop.call_later(_STUCK_S, self._look)

    def _start(self) -> None:
        self._count += 1
        threading.Thread(target=self._work, name=f"everlog-handler-{self._count}", daemon=True).start()

    def _work(self) -> None:
        in_handler.set(True)
        while (call := self._line.get()) is not None:
            try:
                result, error = call.function(*call.arguments), None
            except BaseException as raised:
                result, error = None, raised
            self._ended.append((call.done, result, error))
            with self._lock:
                wake, self._is_woken = not self._is_woken, True
            if wake:
                try:
                    self._loop.call_soon_threadsafe(self._settle)
                except RuntimeError:  # the loop has ended, and nobody waits any more
                    return
            del call, result, error  # a thread that waits keeps nobody's event alive

    def _settle(self) -> None:
        with self._lock:
            self._is_woken = False
        while self._ended:
            done, result, error = self._ended.popleft()
            if done.done():
                continue
            if error is not None:
                done.set_exception(
                    error
                    if isinstance(error, Exception | SystemExit) and not isinstance(error, StopIteration)
                    else _Escaped(error)
                )
            else:
                done.set_result(result)


class _Escaped(Exception):
    """A function let through what a future does not take, `StopIteration`, or what ends nothing in its thread: `KeyboardInterrupt`."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.__cause__ = error  # its trace says where
