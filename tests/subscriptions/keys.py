"""Keys that belong to one partition, and what was seen of one key."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tests.subscriptions.world import PARTITIONS

from everlog.key import partition_of


def keys_in(partition: int, count: int) -> list[str]:
    """Return keys that belong to one partition."""
    found: list[str] = []
    for number in range(100_000):
        if partition_of(f"k{number}", PARTITIONS) == partition:
            found.append(f"k{number}")
            if len(found) == count:
                break
    return found


def of_key(seen: Sequence[tuple[str, int]], key: str) -> list[int]:
    return [n for k, n in seen if k == key]


def number(data: bytes) -> int:
    return int(json.loads(data)["n"])
