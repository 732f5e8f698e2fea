"""One worker process as its supervisor sees it: started, heard, stopped, and killed when it is silent."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from everlog.cli.exits import FAILED, REFUSED, USAGE
from everlog.cli.numbers import Listener
from everlog.cli.pulse import BEATS_PER_LEASE, MARGIN_S, variables
from everlog.observe.meters import Snapshot

START_S: Final = 60.0
"""How long a worker may take until its apps run. It imports modules, and opens what it needs."""

_SILENT_LEASES: Final = 2
_LOOK_EVERY_S: Final = 1.0
_CODES: Final[Mapping[int, str]] = {0: "in order", FAILED: "an error", USAGE: "wrong usage", REFUSED: "start refused"}

_logger: Final = logging.getLogger("everlog")


@dataclass(frozen=True, slots=True)
class Work:
    """What each worker of a supervisor does.

    Attributes:
        command: What starts it.
        lease_s: Two of these without a sign of life are its end.
        grace_s: How long its handlers may take when it stops.
        environment: What it is told beside what it inherits.
    """

    command: Sequence[str]
    lease_s: float
    grace_s: float
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


class Silence:
    """How long a worker has been silent, in time that the supervisor itself was awake for.

    A laptop that sleeps and a container that is paused stop both of them: nobody is killed for that when they wake.
    """

    def __init__(self, lease_s: float) -> None:
        self.look_every_s = min(_LOOK_EVERY_S, lease_s / BEATS_PER_LEASE)
        self.limit_s = START_S
        self._most_s = _SILENT_LEASES * lease_s
        self._silent_s = 0.0
        self._was_heard = False

    @property
    def is_long(self) -> bool:
        """It has lasted for half of what it may."""
        return self._silent_s >= self.limit_s / 2

    def heard(self) -> None:
        """There was a sign of life."""
        self.limit_s = self._most_s
        self._was_heard = True

    def passed(self, seconds: float) -> bool:
        """Count the time since the last look, and return whether the silence has lasted too long. It begins with a look, never before."""
        self._silent_s = 0.0 if self._was_heard else self._silent_s + min(seconds, 2 * self.look_every_s)
        self._was_heard = False
        return self._silent_s >= self.limit_s


class Worker:
    """A worker process, from its start on. Made on the event loop.

    It has a process group of its own, so that Ctrl-C reaches its supervisor alone, and no stdin. It ends by itself when its supervisor is gone.

    Args:
        number: Its number, from 1 on.
        work: What it does.
        introduces: It prints what its apps work with.
        on_running: Called once, when its apps are running.
        on_numbers: Is told what it counts, about once a second; ``None``: nobody asks for that.

    Raises:
        OSError: The system does not start it.
    """

    def __init__(
        self,
        number: int,
        work: Work,
        *,
        introduces: bool,
        on_running: Callable[[], None],
        on_numbers: Callable[[Snapshot], None] | None = None,
    ) -> None:
        self.number = number
        self.is_running = False
        self._is_killed = False
        self._work = work
        self._on_running = on_running
        self._loop = asyncio.get_running_loop()
        self._silence = Silence(work.lease_s)
        self._has_ended = asyncio.Event()
        self._too_late: asyncio.TimerHandle | None = None
        self._line, theirs = socket.socketpair()
        self._line.setblocking(False)
        self._listener = Listener(on_numbers) if on_numbers is not None else None
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 our own command
                    work.command,
                    stdin=subprocess.DEVNULL,
                    env={
                        **os.environ,
                        **work.environment,
                        **variables(number, theirs, introduces=introduces),
                        **self._numbers_variables(),
                    },
                    pass_fds=[theirs.fileno(), *([] if self._listener is None else [self._listener.theirs.fileno()])],
                    process_group=0,
                )
        except BaseException:
            self._line.close()
            if self._listener is not None:
                self._listener.close()
            raise
        if self._listener is not None:
            self._listener.listen()
        self.pid = self._process.pid
        self._loop.add_reader(self._line, self._hear)
        self._death = _death_of(self.pid)
        if self._death is not None:
            self._loop.add_reader(self._death, self._look)
        self._looked_s = self._loop.time()
        self._next_look = self._loop.call_later(self._silence.look_every_s, self._watch)

    def _numbers_variables(self) -> Mapping[str, str]:
        return {} if self._listener is None else self._listener.variables()

    @property
    def is_silent(self) -> bool:
        """It gives no signs of life now. When that lasts, it is killed."""
        return self._silence.is_long

    async def ended(self) -> int:
        """Wait for its end, and return its exit code, or the negative number of the signal that ended it."""
        await self._has_ended.wait()
        return self._process.wait()

    def stop(self) -> None:
        """Ask it to stop in order, and kill it when that takes too long. Asking twice changes nothing."""
        if self._too_late is None and not self._has_ended.is_set():
            bound_s = self._work.grace_s + MARGIN_S
            self._too_late = self._loop.call_later(bound_s, self._kill, f"has not stopped within {bound_s:g} s")
            self._process.terminate()

    def kill(self) -> None:
        """End it at once."""
        self._is_killed = True
        self._process.kill()

    def _kill(self, why: str) -> None:
        if not self._is_killed:
            _logger.warning("worker %d %s: killed", self.number, why)
            self.kill()

    def _hear(self) -> None:
        try:
            beats = self._line.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            beats = b""
        if not beats:  # it ends, or has closed what it does not know: then it is silent
            self._loop.remove_reader(self._line)
            self._look()
            return
        self._silence.heard()
        if not self.is_running:
            self.is_running = True
            self._on_running()

    def _watch(self) -> None:
        now_s = self._loop.time()
        if self._silence.passed(now_s - self._looked_s):
            limit = f"{self._silence.limit_s:g} s"
            self._kill(f"has given no sign of life for {limit}" if self.is_running else f"was not running after {limit}")
        self._looked_s = now_s
        self._next_look = self._loop.call_later(self._silence.look_every_s, self._watch)
        self._look()

    def _look(self) -> None:
        """See whether it has ended, and if so, let go of what belonged to it."""
        if self._process.poll() is None or self._has_ended.is_set():
            return
        self._has_ended.set()
        self._next_look.cancel()
        if self._too_late is not None:
            self._too_late.cancel()
        self._loop.remove_reader(self._line)
        self._line.close()
        if self._listener is not None:
            self._listener.close()
        if self._death is not None:
            self._loop.remove_reader(self._death)
            os.close(self._death)


def _death_of(pid: int) -> int | None:
    """Return a descriptor that becomes readable when a child ends; ``None`` where there is none to be had, and a look has to notice."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def end_in_words(code: int) -> str:
    """Say how a process has ended: `ended with code 4 (start refused)`, `was ended by SIGKILL`."""
    if code >= 0:
        return f"ended with code {code}" + (f" ({_CODES[code]})" if code in _CODES else "")
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"was ended by signal {-code}"
