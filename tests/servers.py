"""Where the servers are that tests need; a test whose server is missing is skipped on a laptop and fails where servers are required."""

from __future__ import annotations

import os
import socket
from functools import cache
from typing import Final
from urllib.parse import urlsplit

import pytest
from tests.services.place import read_env, services_place

_FOUND: Final = {**read_env(services_place().folder / "env"), **os.environ}
"""As it was when the tests were loaded: some of them clear the environment."""


def postgres_url() -> str:
    """Return the URL of a database in which tests may make schemas."""
    return _url("EVERLOG_TEST_POSTGRES")


def kafka_url() -> str:
    """Return the URL of a broker."""
    return _url("EVERLOG_TEST_KAFKA")


def kafka_sasl_url() -> str:
    """Return the URL of a broker that asks for a password."""
    return _url("EVERLOG_TEST_KAFKA_SASL")


def _url(variable: str) -> str:
    url = _FOUND.get(variable, "")
    why = _why_not(url) if url else f"{variable} is not set"
    if why is None:
        return url
    message = f"no server: {why}; `make services` starts one"
    if _FOUND.get("EVERLOG_REQUIRE_SERVERS") == "1":
        pytest.fail(message)
    pytest.skip(message)


@cache
def _why_not(url: str) -> str | None:
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or 0)
    try:
        with socket.create_connection(address, timeout=5):
            return None
    except OSError as error:
        return f"{address[0]}:{address[1]} does not answer ({error})"
