"""A server's process: started apart from the command that starts it, known again by its number and its start, and stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tests.services.place import ServiceFailed

from everlog.drivers.process import Process, is_dead, this_process

_STOP_S: Final = 20.0
_LOOK_S: Final = 0.05


class Server:
    """One process, written down in `NAME.pid`; what it says is in `NAME.log`."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._file = folder / f"{name}.pid"

    @property
    def process(self) -> Process | None:
        """The one that was started, if it runs still."""
        if not self._file.exists():
            return None
        found = Process(**json.loads(self._file.read_text()))
        here = this_process()
        if (found.boot, found.namespace) != (here.boot, here.namespace) or is_dead(found, seen_from=here):
            return None
        return found

    def start(self, command: Sequence[str], *, is_healthy: Callable[[], str | None], within_s: float) -> None:
        """Start it, and wait until it answers.

        Args:
            command: What is run.
            is_healthy: Returns ``None`` once it answers, or why not.
            within_s: How long that may take.

        Raises:
            ServiceFailed: It ended, or did not answer.
        """
        with self.log.open("ab") as log:
            popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        started = this_process()
        while popen.poll() is None:
            try:
                fields = Path(f"/proc/{popen.pid}/stat").read_text().rpartition(")")[2].split()
                started = Process(popen.pid, int(fields[19]), started.boot, started.namespace)
            except OSError:
                started = Process(popen.pid, 0, started.boot, started.namespace)
            break
        self._file.write_text(json.dumps({name: getattr(started, name) for name in ("pid", "start", "boot", "namespace")}))
        until_s = time.monotonic() + within_s
        why: str | None = "it ended"
        while popen.poll() is None and time.monotonic() < until_s:
            why = is_healthy()
            if why is None:
                popen.returncode = 0  # it outlives this process: nobody waits for it
                return
            time.sleep(_LOOK_S)
        self.stop(signal.SIGTERM)
        raise ServiceFailed(
            f"{self.name} was started and did not answer within {within_s:g} s ({why}): look into {self.log}, which ends with\n{self.tail()}"
        )

    def stop(self, number: int) -> bool:
        """End it, if it runs; tell whether it did."""
        found = self.process
        if found is None:
            self._file.unlink(missing_ok=True)
            return False
        for one in (number, signal.SIGKILL):
            os.kill(found.pid, one)
            until_s = time.monotonic() + _STOP_S
            while time.monotonic() < until_s:
                if self.process is None:
                    self._file.unlink(missing_ok=True)
                    return True
                time.sleep(_LOOK_S)
        raise ServiceFailed(f"{self.name}: process {found.pid} does not end: end it by hand")

    def tail(self) -> str:
        """Return the last lines that it has said."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-12:]) if self.log.exists() else "(nothing)"


def run(command: Sequence[str], what: str, *, within_s: float, **options: str) -> None:
    """Run a command to its end.

    Raises:
        ServiceFailed: It cannot be run, fails, or takes too long.
    """
    try:
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            timeout=within_s,
            env={**os.environ, **options},
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise ServiceFailed(f"{what} needs {command[0]}, which is not here: install it with your system's packages") from error
    except subprocess.CalledProcessError as error:
        said = f"{error.stdout}\n{error.stderr}".strip().splitlines()[-12:]
        raise ServiceFailed(f"{what}: `{command[0]}` ended with {error.returncode}: {chr(10).join(said)}") from error
    except subprocess.TimeoutExpired as error:
        raise ServiceFailed(f"{what}: `{command[0]}` took longer than {within_s:g} s") from error
