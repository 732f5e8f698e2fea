"""A PostgreSQL server for tests: schemas that are dropped, and a server's clock that a test moves."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlencode
from uuid import uuid4

import psycopg
from psycopg import sql
from tests.servers import postgres_url
from tests.services.place import Place
from tests.services.postgres import Postgres

from everlog.testing.clock import ManualClock


@contextmanager
def own_server() -> Generator[tuple[Postgres, str]]:
    """Lend a server that may be killed, and the URL of its database."""
    postgres_url()  # where it is missing, so is this one
    folder = Path(tempfile.mkdtemp(prefix="everlog-test-"))
    folder.chmod(0o755)  # the server's own user has to get in
    place = Place(folder)
    server = Postgres(place)
    try:
        server.up()
        yield server, f"postgresql://app:{place.secret('postgres')}@127.0.0.1:{place.port('postgres')}/app"
    finally:
        server.down()
        shutil.rmtree(folder)


def kill(server: Postgres) -> None:
    """Kill -9 a server, and wait until it is gone."""
    process = server.process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    until_s = time.monotonic() + 10
    while server.process is not None:
        assert time.monotonic() < until_s
        time.sleep(0.02)


class MovedServerClock(ManualClock):
    """A clock that a test moves, and with it the one of the server, as the tables of one schema see it."""

    def __init__(self) -> None:
        super().__init__()
        self._schema: PostgresSchema | None = None

    def follow(self, schema: PostgresSchema) -> None:
        """Move the server's clock with this one from now on."""
        self._schema = schema
        self._tell()

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        self._tell()

    def jump(self, seconds: float) -> None:
        super().jump(seconds)
        self._tell()

    def _tell(self) -> None:
        if self._schema is not None:
            self._schema.run(
                f"CREATE OR REPLACE FUNCTION now_us() RETURNS bigint LANGUAGE sql VOLATILE AS $$ SELECT {self.wall_us()}::bigint $$"
            )


class PostgresSchema:
    """A schema of its own, dropped at the end."""

    def __init__(self, server: str) -> None:
        self.name = f"test_{uuid4().hex}"
        self.server = server
        self.app_schema = f"{self.name}_app"
        """Where tables of the app's own are."""
        path = f"-csearch_path={self.app_schema}"
        self.url = f"{server}?{urlencode({'schema': self.name, 'options': path})}"
        self._connection = psycopg.connect(server, autocommit=True)
        self._connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(self.app_schema)))
        self._connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(self.name)))

    def run(self, statement: str, parameters: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
        """Run a statement in the schema, and return its rows."""
        cursor = self._connection.execute(cast("Any", statement), parameters)
        return cursor.fetchall() if cursor.description is not None else []

    def drop(self) -> None:
        """Drop it with all that it holds."""
        self._connection.execute("SET client_min_messages TO warning")
        for name in (self.name, self.app_schema):
            self._connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))
        self._connection.close()
