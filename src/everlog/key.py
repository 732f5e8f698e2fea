"""Keys: their canonical text, and the partition that it belongs to, the same on every engine and in every language.

The hash is the murmur2 of Kafka's Java client (`org.apache.kafka.common.utils.Utils.murmur2`, seed 0x9747b28c).
"""

from __future__ import annotations

import functools
from decimal import Decimal
from enum import Enum
from typing import Final
from uuid import UUID

from everlog.errors import KeyRefused

HASH_NAME: Final = "murmur2"
_SEED: Final = 0x9747B28C
_M: Final = 0x5BD1E995
_MASK: Final = 0xFFFFFFFF


def canonical_text(value: object) -> str:
    """Return the text that stands for `value` in every language.

    A string is taken as it is (not normalised), a Decimal without exponent and trailing zeros, an enum as its value.

    Raises:
        KeyRefused: `None`, a bool, a float or another type; a string with lone surrogates; a Decimal that is no number.
    """
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        text = str(value)
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise KeyRefused(
                    f"the key {text!r} holds a lone surrogate, which UTF-8 cannot carry: use text or the bytes as hex"
                ) from error
        return text
    if isinstance(value, int) and not isinstance(value, bool):
        return str(int(value))
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise KeyRefused(f"the key {value!r} is no number: expected a finite Decimal")
        text = format(value, "f")  # not normalize(): that rounds to the precision of the caller's context
        text = text.rstrip("0").rstrip(".") if "." in text else text
        return "0" if value == 0 else text
    raise KeyRefused(
        f"expected a key of type str, int, UUID, Decimal or an enum of these, found {type(value).__name__} {value!r}"
    )


def murmur2(data: bytes) -> int:
    """Return the 32-bit murmur2 of `data`, unsigned."""
    length = len(data)
    h = _SEED ^ length
    whole = length & ~3
    for at in range(0, whole, 4):
        k = (int.from_bytes(data[at : at + 4], "little") * _M) & _MASK
        h = ((h * _M) & _MASK) ^ (((k ^ (k >> 24)) * _M) & _MASK)
    if whole != length:
        h = ((h ^ int.from_bytes(data[whole:], "little")) * _M) & _MASK
    h = ((h ^ (h >> 13)) * _M) & _MASK
    return h ^ (h >> 15)


@functools.lru_cache(maxsize=65_536)
def partition_of(key: str, partitions: int) -> int:
    """Return the partition of a key's canonical text. Cached, since keys recur and the hash is pure Python."""
    return (murmur2(key.encode()) & 0x7FFFFFFF) % partitions
