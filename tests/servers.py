"""Where the servers are that tests need; a test whose server is missing is skipped on a laptop and fails where servers are required."""

from __future__ import annotations

import os

import pytest


def postgres_url() -> str:
    """Return the URL of a database in which tests may make schemas."""
    return _url("EVERLOG_TEST_POSTGRES")


def _url(variable: str) -> str:
    url = os.environ.get(variable)
    if url:
        return url
    why = f"no server: {variable} is not set (`make services` starts one)"
    if os.environ.get("EVERLOG_REQUIRE_SERVERS") == "1":
        pytest.fail(why)
    pytest.skip(why)
