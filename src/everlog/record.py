"""Records: an event as a sender gives it to a log, and as the log gives it back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from everlog.position import Offset

MAX_DATA_BYTES: Final = 1_000_000
"""Largest data of one event, in bytes of JSON, on every log."""

CORRELATION_ID: Final = "correlationid"
CAUSATION_ID: Final = "causationid"
TRACEPARENT: Final = "traceparent"


class NewRecord(msgspec.Struct, frozen=True, gc=False):
    """An event on its way into a log: the envelope of CloudEvents 1.0 around `data`.

    Attributes:
        type: The declared type with its version: `shop.order_placed/1`.
        data: The event as one JSON value in UTF-8.
        key: The canonical text of its key; the `subject`. ``None`` where the topic has no key.
        partition: The partition that the key belongs to.
        source: Who says so: the name of the app.
        time_us: When it happened, by the publisher's clock, in microseconds since 1970 UTC. Never used for order.
        id: Unique within its source. ``None`` derives it from producer, topic, partition and sequence.
        headers: CloudEvents extensions. ``None`` and empty mean the same.
        schema: Fingerprint of the JSON Schema that `data` obeys; 0 where unknown.
        logged_at_us: Set by `move` alone, to carry the time of the log that it came from.
        tags, flags, key_id, tenant: Room for what later versions say; empty today.
        once: Its idempotency key, for a log with `Features.idempotency_keys` and an append of this record alone. Not stored with it.
    """

    type: str
    data: bytes
    key: str | None
    partition: int
    source: str
    time_us: int
    id: str | None = None
    headers: Mapping[str, str] | None = None
    schema: int = 0
    logged_at_us: int | None = None
    tags: tuple[str, ...] = ()
    flags: int = 0
    key_id: str | None = None
    tenant: str | None = None
    once: str | None = None


class StoredRecord(msgspec.Struct, frozen=True, gc=False):
    """An event as a log holds it. Fields as in `NewRecord`, and where and when the log put it."""

    topic: str
    partition: int
    offset: Offset
    id: str
    type: str
    data: bytes
    key: str | None
    source: str
    time_us: int
    logged_at_us: int
    headers: Mapping[str, str]
    schema: int
    producer: str
    """Who appended it under a number; empty where nobody was named."""
    sequence: int
    """Its number among the producer's records of this topic and partition; -1 where `producer` is empty."""
    tags: tuple[str, ...] = ()
    flags: int = 0
    key_id: str | None = None
    tenant: str | None = None


def id_prefix(producer: str, topic: str, partition: int) -> str:
    """Return what the derived ids of one producer's records in one partition start with; their number follows."""
    return f"{producer}.{topic}.{partition}."


def derived_id(producer: str, topic: str, partition: int, number: int) -> str:
    """Return the id of a record that was sent without one; `number` is its sequence, or its offset without a producer."""
    return f"{id_prefix(producer, topic, partition)}{number}"
