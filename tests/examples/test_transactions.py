"""The examples that commit a row and an event together: the service hears of exactly what is in the table, whatever is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from tests.postgres import PostgresSchema
from tests.servers import postgres_url

EXAMPLES = Path(__file__).parents[2] / "examples"
BIN = Path(sys.executable).parent
PATIENCE_S = 30.0


@pytest.fixture
def schema() -> Generator[PostgresSchema]:
    made = PostgresSchema(postgres_url())
    yield made
    made.drop()
    with psycopg.connect(made.server, autocommit=True) as connection:
        for name in ("rooms", "cleaning", "loans", "thanks"):
            connection.execute(f'DROP SCHEMA IF EXISTS "{made.name}_{name}" CASCADE'.encode())


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class Program:
    """A process of an example, and what it prints."""

    def __init__(self, stack: ExitStack, folder: Path, environment: Mapping[str, str], *command: str) -> None:
        self.popen = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        stack.callback(self.end)

    def until(self, pattern: str) -> str:
        assert self.popen.stdout is not None
        printed: list[str] = []
        for line in self.popen.stdout:
            printed.append(line)
            if re.search(pattern, line):
                return line
        raise AssertionError(f"it ended without {pattern!r}: {''.join(printed)}")

    def end(self) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGKILL)
        self.popen.wait()
        if self.popen.stdout is not None:
            self.popen.stdout.close()


def post(url: str, body: object) -> int:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def eventually(holds: Callable[[], bool]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while not holds():
        assert time.monotonic() < until_s
        pause.wait(0.05)


def environment(schema: PostgresSchema) -> dict[str, str]:
    base = schema.url.partition("?")[0]
    options = f"options=-csearch_path%3D{schema.app_schema}"
    return {
        "EVERLOG_LOG_URL": f"{base}?schema={schema.name}&{options}",
        "EVERLOG_STORE_URL": f"{base}?schema={schema.name}_{{app}}&{options}",
    }


def counted(schema: PostgresSchema, app: str) -> dict[str, int]:
    """Return what a service has counted, by key."""
    with psycopg.connect(schema.server) as connection:
        rows = connection.execute(f'SELECT key, value FROM "{schema.name}_{app}".state'.encode()).fetchall()
    return {json.loads(key)[0]: int(value) for key, value in rows}


def test_every_booking_is_a_row_and_an_event_though_the_web_server_is_killed(schema: PostgresSchema) -> None:
    folder = EXAMPLES / "sqlalchemy"
    server = schema.server.replace("postgresql:", "postgresql+psycopg:", 1)
    names = {**environment(schema), "DATABASE_URL": f"{server}?options=-csearch_path%3D{schema.app_schema}"}
    with ExitStack() as stack:
        port = free_port()
        command = (str(BIN / "uvicorn"), "rooms:web", "--port", str(port), "--no-access-log")
        web = Program(stack, folder, names, *command)
        web.until("Uvicorn running")
        service = Program(stack, folder, names, str(BIN / "everlog"), "run", "cleaning")
        service.until("is running")
        url = f"http://127.0.0.1:{port}/bookings"
        wishes = [
            {"room": str(100 + number % 10), "night": f"2027-03-{1 + number // 10:02}", "guest": "ada"} for number in range(60)
        ]
        assert [post(url, wish) for wish in wishes[:30]] == [201] * 30
        assert [post(url, {**wish, "guest": "bob"}) for wish in wishes[:5]] == [409] * 5
        web.end()
        web = Program(stack, folder, names, *command)
        web.until("Uvicorn running")
        assert [post(url, wish) for wish in wishes[30:]] == [201] * 30
        rows = schema.run(f"SELECT room, count(*) FROM {schema.app_schema}.booking GROUP BY room")
        assert sum(count for _, count in rows) == 60
        eventually(lambda: counted(schema, "cleaning") == dict(rows))


def test_every_loan_is_a_row_and_an_event(schema: PostgresSchema) -> None:
    folder = EXAMPLES / "django"
    parts = urlsplit(schema.server)
    names = {
        **environment(schema),
        "DATABASE_NAME": parts.path.lstrip("/"),
        "DATABASE_USER": parts.username or "",
        "DATABASE_HOST": parts.hostname or "",
        "DATABASE_PORT": str(parts.port or ""),
        "DATABASE_OPTIONS": f"-csearch_path={schema.app_schema}",
        "PGPASSWORD": parts.password or "",
        "PYTHONUNBUFFERED": "1",
    }
    with ExitStack() as stack:
        migrated = Program(stack, folder, names, sys.executable, "manage.py", "migrate")
        assert migrated.popen.wait(PATIENCE_S) == 0
        port = free_port()
        web = Program(stack, folder, names, sys.executable, "manage.py", "runserver", "--noreload", str(port))
        web.until("Quit the server")
        service = Program(stack, folder, names, str(BIN / "everlog"), "run", "thanks")
        service.until("is running")
        url = f"http://127.0.0.1:{port}/loans"
        assert [post(url, {"reader": "ada", "book": f"book {number}"}) for number in range(20)] == [201] * 20
        assert [post(url, {"reader": "bob", "book": f"book {number}"}) for number in range(20)] == [409] * 20
        assert post(url, {"reader": 7, "book": "Numbers"}) == 422
        assert post(url, {"reader": "bob", "book": "another"}) == 201
        eventually(lambda: counted(schema, "thanks") == {"ada": 20, "bob": 1})
        assert schema.run(f"SELECT count(*) FROM {schema.app_schema}.library_loan") == [(21,)]
