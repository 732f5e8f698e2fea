"""What a service manager wants to hear of a process that it started: systemd's protocol of sd_notify(3)."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping
from typing import Final

_logger: Final = logging.getLogger("everlog")


class ServiceManager:
    """The service manager that waits for word; one that hears nothing where nobody waits.

    Args:
        environ: Its `NOTIFY_SOCKET` says where to, `WATCHDOG_USEC` and `WATCHDOG_PID` how often and who.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        is_watched = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._every_s = int(environ.get("WATCHDOG_USEC") or "0") / 2e6 if is_watched and self._address else 0.0

    def ready(self) -> None:
        """Say that the service runs."""
        self._tell("READY=1")

    def stopping(self) -> None:
        """Say that it stops."""
        self._tell("STOPPING=1")

    async def keep_watchdog(self) -> None:
        """Show that the event loop turns, twice in the time after which the service manager would end the process."""
        while self._every_s:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(self._every_s)

    def _tell(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
                line.setblocking(False)
                # An address that begins with @ is one of Linux's abstract namespace, which no file stands for.
                line.sendto(state.encode(), "\0" + self._address[1:] if self._address.startswith("@") else self._address)
        except OSError as error:
            _logger.warning("the service manager was not told %s: %s", state, error)
