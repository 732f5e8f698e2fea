"""The processes of the demo: started and ended as somebody at a terminal would, with the `everlog` command."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

SHOP: Final = Path(__file__).parent
EVERLOG: Final = Path(sys.executable).with_name("everlog")
_STOP_S: Final = 40.0
_PAUSES: Final = 20
_TURN_S: Final = 0.25
"""Somebody who lives has let go of the log by then."""


class CommandFailed(Exception):
    """A command that the demo needs ended with an error."""


class Processes:
    """Processes in one folder, by name. Each has a file NAME.out with all that it said.

    Each is in a group of its own, so that a kill takes whatever it started itself along, and Ctrl-C reaches the demo alone.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self._folder = folder
        ours = {name: value for name, value in os.environ.items() if not name.startswith("EVERLOG_")}
        path = os.pathsep.join([str(SHOP), *filter(None, [ours.get("PYTHONPATH")])])
        self._environment = {**ours, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **settings}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._outputs: list[IO[bytes]] = []

    def run_service(self, name: str) -> None:
        """Start a service: `everlog run NAME:NAME`."""
        self._start(name, [str(EVERLOG), "run", f"{name}:{name}"])

    def run_script(self, name: str, *arguments: str) -> None:
        """Start a script of the shop."""
        self._start(name, [sys.executable, str(SHOP / f"{name}.py"), *arguments])

    def _start(self, name: str, command: Sequence[str]) -> None:
        output = (self._folder / f"{name}.out").open("ab")
        self._outputs.append(output)
        self._running[name] = subprocess.Popen(  # noqa: S603 our own commands
            command,
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )

    async def command(self, *arguments: str) -> str:
        """Run an `everlog` command to its end and return what it printed.

        Raises:
            CommandFailed: It ended with another code than 0.
        """
        process = await asyncio.create_subprocess_exec(
            EVERLOG, *arguments, cwd=self._folder, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        printed, _ = await process.communicate()
        if process.returncode != 0:
            raise CommandFailed(f"`everlog {' '.join(arguments)}` ended with {process.returncode}: {printed.decode().strip()}")
        return printed.decode().strip()

    async def pause(self, name: str) -> None:
        """Stop a process where it stands, though not inside a commit to the log: there it would keep all others from the file."""
        process = self._running[name]
        for _ in range(_PAUSES):
            _signal(process, signal.SIGSTOP)
            if await self._is_log_free():
                return
            _signal(process, signal.SIGCONT)
            await asyncio.sleep(0.01)
        _signal(process, signal.SIGSTOP)

    async def _is_log_free(self) -> bool:
        """Tell whether writers get their turn at the log, which is a lock on a file beside it."""
        path = self._folder / ".everlog" / "log.db-turn"
        if not path.exists():  # the log is elsewhere, and a server takes the turn from who is stopped
            return True
        with path.open("rb") as turn:
            for _ in range(int(_TURN_S / 0.005)):
                await asyncio.sleep(0.005)
                try:
                    fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                return True
        return False

    def resume(self, name: str) -> None:
        """Let a paused process go on."""
        _signal(self._running[name], signal.SIGCONT)

    async def kill(self, name: str) -> None:
        """Kill -9, and wait until it is gone. It may be paused."""
        process = self._running.pop(name)
        _signal(process, signal.SIGKILL)
        await asyncio.to_thread(process.wait)

    def ended(self) -> Mapping[str, int]:
        """Return those that ended by themselves, with their codes."""
        return {name: process.returncode for name, process in self._running.items() if process.poll() is not None}

    def is_running(self, name: str) -> bool:
        """Tell whether a process was started and has not ended."""
        return name in self._running and self._running[name].poll() is None

    async def stop_one(self, name: str) -> int:
        """Ask one to stop, wait for it, and return its code."""
        process = self._running.pop(name)
        process.terminate()
        try:
            return await asyncio.to_thread(process.wait, _STOP_S)
        finally:
            if process.poll() is None:  # `close` has to kill it
                self._running[name] = process

    async def stop(self) -> Mapping[str, int]:
        """Ask all to stop, wait for them, and return their codes."""
        names = list(self._running)
        codes = await asyncio.gather(*[self.stop_one(name) for name in names])
        return dict(zip(names, codes, strict=True))

    def close(self) -> None:
        """Kill what is left. Idempotent."""
        for process in self._running.values():
            if process.poll() is None:
                _signal(process, signal.SIGKILL)
                process.wait()
        for output in self._outputs:
            output.close()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass  # it has just ended
