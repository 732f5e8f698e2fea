"""Running statements: rows as tuples, columns as arrays, and texts that PostgreSQL can hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString

from everlog.drivers.postgres.database import Connection


async def rows_of(connection: Connection, query: LiteralString, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    """Run a statement and return its rows."""
    return await (await connection.execute(query, values, binary=True)).fetchall()


async def first_of(connection: Connection, query: LiteralString, values: Sequence[object] = ()) -> Any:
    """Run a statement and return the first value of its first row; ``None`` where there is none."""
    row = await (await connection.execute(query, values, binary=True)).fetchone()
    return None if row is None else row[0]


async def run(connection: Connection, query: LiteralString, values: Sequence[object] = ()) -> int:
    """Run a statement and return how many rows it changed."""
    return (await connection.execute(query, values)).rowcount


def columns(rows: Sequence[Sequence[Any]], count: int) -> list[list[Any]]:
    """Return rows of `count` values as columns, which one statement takes as arrays."""
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(count)]


def text_of(text: str) -> str:
    """Return a text without the two things that PostgreSQL does not take: zeros and halves of characters."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def key_bytes(key: str) -> bytes:
    """Return an event's key as it is stored. Bytes are in the order of the characters."""
    return key.encode()


def key_text(key: bytes) -> str:
    """Return an event's key as it was given."""
    return bytes(key).decode()
