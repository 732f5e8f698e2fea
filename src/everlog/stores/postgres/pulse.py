"""A member's signs of life, from a thread with a connection of its own, which a busy event loop does not stop."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Final, LiteralString, NamedTuple

import psycopg

_CONNECT_S: Final = 5


class _Order(NamedTuple):
    """Something to run at once."""

    work: Callable[[psycopg.Connection[Any]], None]
    done: threading.Event
    errors: list[Exception]


class Pulse:
    """Beats while its member is alive.

    Args:
        conninfo: Where.
        prepare: Run on each new connection.
        every_s: Seconds of real time between two beats.
        beat: Returns a statement and its values; ``None``: no sign of life now. Called in the thread.
    """

    def __init__(
        self,
        conninfo: str,
        prepare: Callable[[psycopg.Connection[Any]], None],
        every_s: float,
        beat: Callable[[], tuple[LiteralString, tuple[object, ...]] | None],
    ) -> None:
        self._conninfo = conninfo
        self._prepare = prepare
        self._every_s = every_s
        self._beat = beat
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._connection: psycopg.Connection[Any] | None = None  # only in the thread

    def start(self) -> None:
        """Begin to beat. Idempotent."""
        if self._thread is None:
            # A daemon: a server that does not answer shall not keep a process that has to end.
            self._thread = threading.Thread(target=self._run, name="everlog store: pulse", daemon=True)
            self._thread.start()

    def do(self, work: Callable[[psycopg.Connection[Any]], None], within_s: float) -> bool:
        """Run something in the thread, from any thread, while the event loop is blocked; tell whether it was done in time."""
        self.start()
        order = _Order(work, threading.Event(), [])
        self._orders.put(order)
        return order.done.wait(within_s) and not order.errors

    def _run(self) -> None:
        try:
            while True:
                try:
                    order = self._orders.get(timeout=self._every_s)
                except queue.Empty:
                    self._beat_once()
                    continue
                if order is None:
                    return
                self._carry_out(order)
        finally:
            if self._connection is not None:
                self._connection.close()

    def _beat_once(self) -> None:
        statement = self._beat()
        if statement is None:
            return
        try:
            self._connected().execute(*statement)
        except psycopg.Error:  # the next beat tries anew
            self._drop()

    def _carry_out(self, order: _Order) -> None:
        try:
            order.work(self._connected())
        except Exception as error:
            order.errors.append(error)
            self._drop()
        order.done.set()

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            connection = psycopg.connect(self._conninfo, autocommit=True, connect_timeout=_CONNECT_S)
            self._prepare(connection)
            self._connection = connection
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        """Beat no more."""
        if self._thread is not None:
            self._orders.put(None)
            self._thread.join(timeout=_CONNECT_S)
