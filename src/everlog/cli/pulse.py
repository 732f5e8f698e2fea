"""A worker's line to its supervisor: signs of life go out on it, and its end says that the supervisor is gone.

The line is one end of a socket pair, which the worker inherits. Each byte that it writes is one sign of life; the first says that its apps are
running. Nothing is ever written to it, so that all it can read is the end.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Mapping, MutableMapping
from typing import Final

from everlog.cli.exits import FAILED
from everlog.clock import Clock
from everlog.errors import StartRefused

BEATS_PER_LEASE: Final = 4
MARGIN_S: Final = 5.0
"""What a stop may take beyond the grace period, before the process is ended."""

_NUMBER: Final = "EVERLOG_WORKER"
_LINE: Final = "EVERLOG_SUPERVISOR"
_BEAT: Final = b"."
_TURN_EVERY_S: Final = 0.5

_logger: Final = logging.getLogger("everlog")


def variables(number: int, line: socket.socket, *, introduces: bool) -> Mapping[str, str]:
    """Return the environment variables that tell a worker its number, its line, and whether it prints what its apps work with."""
    return {_NUMBER: str(number), _LINE: f"{line.fileno()}{'+' if introduces else ''}"}


class Pulse:
    """The worker's end of the line.

    Attributes:
        number: The worker's number, from 1 on.
        introduces: It is the one that prints what its apps work with.
    """

    def __init__(self, number: int, line: socket.socket, clock: Clock, *, introduces: bool) -> None:
        self.number = number
        self.introduces = introduces
        self._line = line
        self._clock = clock
        self._is_running = False
        self._turned_s = 0.0
        self._limit_s = 0.0

    @classmethod
    def of(cls, environ: MutableMapping[str, str], clock: Clock) -> Pulse | None:
        """Return the line of this process; ``None`` if no supervisor started it. What a handler starts will not take it for its own.

        Raises:
            StartRefused: The environment names a line that is none.
        """
        text = environ.pop(_LINE, None)
        if text is None:
            return None
        try:
            line = socket.socket(fileno=int(text.removesuffix("+")))
            line.set_inheritable(False)
            number = int(environ[_NUMBER])
        except (KeyError, ValueError, OSError) as error:
            raise StartRefused(f"{_LINE}={text} is for what a supervisor starts, and this process was not: unset it") from error
        return cls(number, line, clock, introduces=text.endswith("+"))

    def attend(self, *, lease_s: float, grace_s: float) -> None:
        """From now on, stop this process in order when the supervisor is gone, and end it when that takes too long."""
        self._line.settimeout(lease_s / BEATS_PER_LEASE)
        # A thread, since a handler may hold the event loop for its whole time limit, and other processes wait for this one's signs.
        threading.Thread(target=self._attend, args=[grace_s], name="pulse", daemon=True).start()

    async def turn(self, limit_s: float) -> None:
        """Show that the event loop turns. When it has not for `limit_s`, there are no more beats: what blocks it will not end."""
        while True:
            self._turned_s, self._limit_s = self._clock.monotonic_s(), limit_s
            await self._clock.sleep(min(_TURN_EVERY_S, limit_s / 4))

    def running(self) -> None:
        """Say that the apps are running. From now on there are beats."""
        self._is_running = True
        self._beat()

    def _beat(self) -> None:
        try:
            self._line.send(_BEAT)
        except OSError:  # the supervisor is gone, which reading tells; or it is stopped, and reads later
            pass

    def _attend(self, grace_s: float) -> None:
        while self._has_supervisor():
            if self._is_running and self._clock.monotonic_s() - self._turned_s <= self._limit_s:
                self._beat()
        # Before the warning: whoever holds the logger's lock may hang.
        end = threading.Timer(grace_s + MARGIN_S, os._exit, [FAILED])
        end.daemon = True
        end.start()
        os.kill(os.getpid(), signal.SIGTERM)
        _logger.warning("the supervisor is gone: stopping")

    def _has_supervisor(self) -> bool:
        """Wait for the time between two beats, or until the line has ended."""
        try:
            return self._line.recv(1) != b""
        except TimeoutError:
            return True
        except OSError:  # it ended with beats in it that nobody has read
            return False
