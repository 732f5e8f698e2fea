"""A note at the start of each handler call, for the demo alone: it survives kill -9, and has nothing to do with the store.

Each note is one `write` to a file opened for appending, without a buffer: what a killed process had noted is there afterwards.
"""

from __future__ import annotations

import functools
import os


@functools.cache
def _file(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def note(word: str) -> None:
    """Write a line to the file that SHOP_SIDE_FILE names; nothing where it names none."""
    path = os.environ.get("SHOP_SIDE_FILE")
    if path:
        os.write(_file(path), f"{word}\n".encode())
