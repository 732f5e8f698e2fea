"""Keys: the canonical text and the partition on which every engine and every language agrees."""
# ruff: noqa: D103 - the name of a case is its sentence

from __future__ import annotations

import enum
from decimal import Decimal
from typing import Final
from uuid import UUID

from everlog.conformance.cases import case, raises, same
from everlog.conformance.log.harness import LogUnderTest
from everlog.errors import KeyRefused
from everlog.key import canonical_text, murmur2, partition_of

KAFKA_VECTORS: Final = (
    (b"21", -973932308),
    (b"foobar", -790332482),
    (b"a-little-bit-long-string", -985981536),
    (b"a-little-bit-longer-string", -1486304829),
    (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
    (b"abc", 479470107),
    (b"1", -1993445489),
    (b"12345", -1188365604),
)
"""Bytes and their hash as a signed int: `testMurmur2` of Apache Kafka's `UtilsTest`; the last two, with one byte over, of Pekko's Kafka hash."""


class _Colour(enum.Enum):
    RED = "red"
    SEVEN = 7


class _Plain(enum.IntEnum):
    ONE = 1


CANONICAL_VECTORS: Final[tuple[tuple[object, str], ...]] = (
    ("order-1", "order-1"),
    ("", ""),
    ("Zürich", "Zürich"),
    ("Zu\u0308rich", "Zu\u0308rich"),  # not normalised: another key than the line before
    ("😀", "😀"),
    (0, "0"),
    (-7, "-7"),
    (10**30, "1" + "0" * 30),
    (UUID("12345678-1234-5678-1234-567812345678"), "12345678-1234-5678-1234-567812345678"),
    (Decimal("1.50"), "1.5"),
    (Decimal("1E+3"), "1000"),
    (Decimal("-0.00"), "0"),
    (Decimal("0.000001"), "0.000001"),
    (_Colour.RED, "red"),
    (_Colour.SEVEN, "7"),
    (_Plain.ONE, "1"),
)
"""Keys and their canonical text."""

PARTITION_VECTORS: Final = (
    ("21", 8, 4),
    ("foobar", 8, 6),
    ("abc", 8, 3),
    ("abc", 3, 0),
    ("Zürich", 8, 1),
    ("😀", 8, 1),
    ("", 8, 1),
)
"""Canonical text, number of partitions, partition."""


@case()
async def murmur2_is_that_of_kafka(_: LogUnderTest) -> None:
    for data, signed in KAFKA_VECTORS:
        same(murmur2(data), signed & 0xFFFFFFFF, f"the hash of {data!r}")


@case()
async def a_key_has_one_canonical_text(_: LogUnderTest) -> None:
    for value, text in CANONICAL_VECTORS:
        same(canonical_text(value), text, f"the text of {value!r}")


@case()
async def what_has_no_canonical_text_is_no_key(_: LogUnderTest) -> None:
    for value in (True, 1.5, None, b"bytes", "\ud800", Decimal("NaN"), Decimal("Infinity"), (1, 2)):
        with raises(KeyRefused):
            canonical_text(value)


@case()
async def a_key_belongs_to_the_partition_that_kafka_gives_it(_: LogUnderTest) -> None:
    for text, partitions, partition in PARTITION_VECTORS:
        same(partition_of(text, partitions), partition, f"the partition of {text!r} among {partitions}")
