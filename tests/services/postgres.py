"""PostgreSQL, from the system's packages."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Final

import psycopg
from tests.services.place import Place, ServiceFailed, check_free
from tests.services.server import Server, run

from everlog.drivers.process import Process

TOLD: Final = ("EVERLOG_TEST_POSTGRES",)
_INSTALL_S: Final = 300.0
_READY_S: Final = 30.0
_SETTINGS: Final = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
max_connections = 200
"""


class Postgres:
    """One server with one role and one database, both `app`."""

    name = "postgres"

    def __init__(self, place: Place) -> None:
        self._place = place
        self._folder = place.folder / "postgres"
        self._data = self._folder / "data"
        self._server = Server(place.folder, self.name)

    @property
    def process(self) -> Process | None:
        """Its process, while it runs."""
        return self._server.process

    def up(self) -> None:
        """Start it, if it does not run and answer.

        Raises:
            ServiceFailed: It is not installed and cannot be, or does not start.
        """
        port, password = self._place.port(self.name), self._place.secret(self.name)
        url = f"postgresql://app:{password}@127.0.0.1:{port}/app"
        if self._server.process is None or self._why_not(url) is not None:
            self._server.stop(signal.SIGINT)
            self._start(port, password, url)
        self._place.tell({"EVERLOG_TEST_POSTGRES": url})

    def _start(self, port: int, password: str, url: str) -> None:
        programs = installed()
        if programs is None:
            install()
            programs = installed()
        if programs is None:
            raise ServiceFailed(
                "postgres: expected a server in /usr/lib/postgresql or on the PATH, found none: install PostgreSQL"
            )
        check_free(port, self.name, "EVERLOG_TEST_POSTGRES_PORT")
        if not (self._data / "PG_VERSION").exists():
            self._make(programs, password)
        (self._data / "postgresql.auto.conf").write_text(_SETTINGS.format(port=port))
        self._clear()
        admin = url.rpartition("/")[0] + "/postgres"
        self._server.start(
            [*_as_owner(), str(programs / "postgres"), "-D", str(self._data)],
            is_healthy=lambda: self._why_not(admin),
            within_s=_READY_S,
        )
        with psycopg.connect(admin, autocommit=True) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = 'app'").fetchone() is None:
                connection.execute("CREATE DATABASE app")

    def _make(self, programs: Path, password: str) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(mode=0o700)
        word = self._folder / "password"
        word.touch(mode=0o600)
        word.write_text(password)
        if os.getuid() == 0:
            for path in (self._folder, word):
                shutil.chown(path, "postgres", "postgres")
        run(
            [
                *_as_owner(), str(programs / "initdb"), "-D", str(self._data), "-U", "app", f"--pwfile={word}",
                "--auth=scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8", "--data-checksums", "--no-sync",
            ],
            "postgres: making its data",
            within_s=60,
        )  # fmt: skip

    def _clear(self) -> None:
        """Take away what a server that was killed has left: its children hold its memory for a moment, and its lock file stays."""
        until_s = time.monotonic() + _READY_S
        while [one for one in Path("/proc").glob("[0-9]*") if _works_in(one, self._data)]:
            if time.monotonic() > until_s:
                raise ServiceFailed(
                    f"postgres: processes of a server that was killed work in {self._data} still: end them by hand"
                )
            time.sleep(0.05)
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def _why_not(self, url: str) -> str | None:
        try:
            with psycopg.connect(url, connect_timeout=2) as connection:
                connection.execute("SELECT 1")
        except psycopg.Error as error:
            return " ".join(str(error).split())
        return None

    def down(self) -> bool:
        """Stop it, if it runs; tell whether it did. A client that is connected is disconnected."""
        self._place.forget(TOLD)
        return self._server.stop(signal.SIGINT)


def installed() -> Path | None:
    """Return the folder of the newest server's programs; ``None`` where there is none."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if found:
        return max(found, key=lambda path: int(path.parent.name))
    program = shutil.which("postgres")
    return None if program is None else Path(program).parent


def install() -> None:
    """Install it with Debian's packages, where that is possible.

    Raises:
        ServiceFailed: It is not.
    """
    if os.getuid() != 0 or shutil.which("apt-get") is None:
        raise ServiceFailed(
            "postgres: it is not here, and only root of a Debian system can be helped: install PostgreSQL, or use compose.yaml"
        )
    run(["apt-get", "update", "-qq"], "postgres: installing it", within_s=_INSTALL_S)
    run(
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "postgresql"],
        "postgres: installing it",
        within_s=_INSTALL_S,
        DEBIAN_FRONTEND="noninteractive",
    )


def _as_owner() -> list[str]:
    """Return what runs a command as a user that is not root: the server refuses it."""
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.getuid() == 0 else []


def _works_in(process: Path, folder: Path) -> bool:
    try:
        return (process / "cwd").readlink() == folder
    except OSError:
        return False
