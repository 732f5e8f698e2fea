"""What a worker counts, on its way to its supervisor: a line beside that of the pulse, since a sign of life must not wait behind numbers.

4 bytes, big-endian: the length of what follows · a `Snapshot` as MessagePack
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Final

import msgspec

from everlog.errors import StartRefused
from everlog.observe.meters import Meters, Snapshot

TELL_EVERY_S: Final = 1.0

_LINE: Final = "EVERLOG_NUMBERS"
_LENGTH_BYTES: Final = 4
_MOST_BYTES: Final = 16 << 20
_READ_BYTES: Final = 1 << 16
_snapshots: Final = msgspec.msgpack.Decoder(Snapshot)


class Listener:
    """The supervisor's end of the line. Made on the event loop.

    Args:
        told: Is given each snapshot.
    """

    def __init__(self, told: Callable[[Snapshot], None]) -> None:
        self._told = told
        self._loop = asyncio.get_running_loop()
        self._line, self.theirs = socket.socketpair()
        self._line.setblocking(False)
        self._read = bytearray()

    def variables(self) -> Mapping[str, str]:
        """Return the environment variable that tells a worker its end."""
        return {_LINE: str(self.theirs.fileno())}

    def listen(self) -> None:
        """Listen, once the worker has its end."""
        self.theirs.close()
        self._loop.add_reader(self._line, self._hear)

    def close(self) -> None:
        """Take what is left on the line, and listen no more. Idempotent."""
        if self._line.fileno() >= 0:
            self._hear()
            self._loop.remove_reader(self._line)
            self._line.close()
            self.theirs.close()

    def _hear(self) -> None:
        try:
            while data := self._line.recv(_READ_BYTES):
                self._read += data
                self._tell()
        except BlockingIOError:
            return
        except (OSError, ValueError):  # it has ended; or what comes is not ours
            pass
        self._loop.remove_reader(self._line)

    def _tell(self) -> None:
        while len(self._read) >= _LENGTH_BYTES:
            end = _LENGTH_BYTES + int.from_bytes(self._read[:_LENGTH_BYTES])
            if end > _MOST_BYTES:
                raise ValueError("expected a snapshot")
            if len(self._read) < end:
                return
            snapshot = _snapshots.decode(self._read[_LENGTH_BYTES:end])
            del self._read[:end]
            self._told(snapshot)


class Teller:
    """The worker's end of the line."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._line.setblocking(False)

    @classmethod
    def of(cls, environ: MutableMapping[str, str]) -> Teller | None:
        """Return the line of this process; ``None`` if nobody wants its numbers. What a handler starts will not take it for its own.

        Raises:
            StartRefused: The environment names a line that is none.
        """
        text = environ.pop(_LINE, None)
        if text is None:
            return None
        try:
            line = socket.socket(fileno=int(text))
            line.set_inheritable(False)
        except (ValueError, OSError) as error:
            raise StartRefused(f"{_LINE}={text} is for what a supervisor starts, and this process was not: unset it") from error
        return cls(line)

    async def keep_telling(self, meters: Meters) -> None:
        """Tell what is counted, about once a second, until cancelled or until the supervisor is gone."""
        with suppress(OSError):
            while True:
                await self.tell(meters)
                await asyncio.sleep(TELL_EVERY_S)

    async def tell(self, meters: Meters) -> None:
        """Tell it once. A supervisor that does not listen is waited for.

        Raises:
            OSError: It is gone.
        """
        body = msgspec.msgpack.encode(meters.snapshot())
        await asyncio.get_running_loop().sock_sendall(self._line, len(body).to_bytes(_LENGTH_BYTES) + body)
