"""The folder that the servers live in: what is installed, their data, their ports, and what tests are told of them."""

from __future__ import annotations

import json
import os
import secrets
import socket
import stat
import tempfile
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
_FOLDER: Final = "EVERLOG_TEST_SERVICES_DIR"


class ServiceFailed(Exception):
    """A server could not be installed, started or stopped; says what was attempted, what was found, and what to do."""


class Place:
    """A folder for servers. Made where it is missing."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def port(self, name: str) -> int:
        """Return the port of a server: the one that the environment says, the one that it had before, or one that is free.

        Raises:
            ServiceFailed: The environment says something else than a port.
        """
        variable = f"EVERLOG_TEST_{name.upper()}_PORT"
        chosen = os.environ.get(variable)
        if chosen is not None and not (chosen.isdigit() and 0 < int(chosen) < 1 << 16):
            raise ServiceFailed(f"{variable}: expected a port from 1 to 65535, found {chosen!r}")
        file = self.folder / "ports.json"
        ports: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
        ports[name] = int(chosen) if chosen is not None else ports.get(name) or free_port()
        file.write_text(json.dumps(ports))
        return ports[name]

    def secret(self, name: str) -> str:
        """Return a password that was made for this folder."""
        file = self.folder / f"{name}.password"
        if not file.exists():
            file.touch(mode=0o600)
            file.write_text(secrets.token_urlsafe(16))
        return file.read_text()

    def tell(self, found: Mapping[str, str]) -> None:
        """Write down where tests find servers, beside what stands there of others."""
        file = self.folder / "env"
        lines = {**read_env(file), **found}
        file.touch(mode=0o600)
        file.write_text("".join(f"{name}={value}\n" for name, value in sorted(lines.items())))

    def forget(self, names: tuple[str, ...]) -> None:
        """Say no more that these can be found."""
        file = self.folder / "env"
        left = {name: value for name, value in read_env(file).items() if name not in names}
        file.write_text("".join(f"{name}={value}\n" for name, value in sorted(left.items())))


def services_place() -> Place:
    """Return the folder of this checkout's servers: `.services`, or the one that the environment names.

    PostgreSQL does not run as root, so its own user has to get to the folder: where it cannot, one for temporary files is used.
    """
    chosen = os.environ.get(_FOLDER)
    folder = Path(chosen).resolve() if chosen else ROOT / ".services"
    if os.getuid() == 0 and not chosen and not is_open_to_others(folder):
        name = blake2b(str(ROOT).encode(), digest_size=6).hexdigest()
        folder = Path(tempfile.gettempdir()) / f"everlog-services-{name}"
    return Place(folder)


def is_open_to_others(folder: Path) -> bool:
    """Tell whether every folder above can be entered by any user."""
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in folder.parents)


def read_env(file: Path) -> dict[str, str]:
    """Return what a file of NAME=value lines says; nothing where it is missing."""
    if not file.exists():
        return {}
    return dict(line.split("=", 1) for line in file.read_text().splitlines() if "=" in line)


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def check_free(port: int, what: str, variable: str) -> None:
    """Check that a server can listen on a port.

    Raises:
        ServiceFailed: Somebody else does.
    """
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError as error:
            raise ServiceFailed(f"{what}: port {port} is taken ({error}): choose another one with {variable}=…") from error
