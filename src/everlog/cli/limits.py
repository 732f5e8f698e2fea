"""Limits of retention as people write them, `7d` and `500MB`, and how they are shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from everlog.topics import check_limits

NONE: Final = "none"
"""The word for no limit."""

_NUMBER: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)")
_SECONDS: Final[Mapping[str, int]] = {"w": 604_800, "d": 86_400, "h": 3_600, "min": 60, "s": 1}
_BYTES: Final[Mapping[str, int]] = {
    "TiB": 1 << 40, "TB": 10**12, "GiB": 1 << 30, "GB": 10**9, "MiB": 1 << 20, "MB": 10**6, "KiB": 1 << 10, "kB": 10**3, "B": 1,
}  # fmt: skip
_MOST_DIGITS: Final = 20


def parse_age_s(text: str) -> float | None:
    """Return the seconds that a text like `7d`, `12h`, `30min`, `90s` or `90` says; ``None`` for `none`.

    Raises:
        ValueError: It says no age above 0.
    """
    amount = _parsed(text, _SECONDS, "an age like 7d, 12h, 30min or 90s")
    keep_s = None if amount is None else float(amount)
    check_limits(keep_s, None)
    return keep_s


def parse_bytes(text: str) -> int | None:
    """Return the bytes that a text like `500MB`, `2GiB` or `1000` says; ``None`` for `none`. kB is 1,000 bytes, KiB 1,024.

    Raises:
        ValueError: It says no size above 0, or a part of a byte.
    """
    amount = _parsed(text, _BYTES, "a size like 500MB or 2GiB")
    if amount is not None and amount != amount.to_integral_value():
        raise ValueError(f"expected whole bytes, found {text!r}")
    keep_bytes = None if amount is None else int(amount)
    check_limits(None, keep_bytes)
    return keep_bytes


def _parsed(text: str, units: Mapping[str, int], expected: str) -> Decimal | None:
    if text.strip().lower() == NONE:
        return None
    found = _NUMBER.fullmatch(text.strip())
    sizes = {unit.lower(): size for unit, size in units.items()} | {"": 1}
    if found is None or found[2].lower() not in sizes or len(found[1]) > _MOST_DIGITS:
        raise ValueError(f"expected {expected}, or none, found {text!r}")
    return Decimal(found[1]) * sizes[found[2].lower()]


def shown_limits(keep_s: float | None, keep_bytes: int | None) -> str:
    """Return what a topic keeps: `everything`, or `7 d or 500 MB of each partition`, whichever is less."""
    if keep_s is None and keep_bytes is None:
        return "everything"
    age = None if keep_s is None else shown_age(keep_s)
    return " or ".join(
        [part for part in (age, None if keep_bytes is None else f"{shown_bytes(keep_bytes)} of each partition") if part]
    )


def shown_age(keep_s: float) -> str:
    """Return an age in the largest unit of which it is a whole number: `7 d`, `90 min`, `1.5 s`. It can be parsed again."""
    for unit, size in _SECONDS.items():
        if unit != "w" and keep_s % size == 0:
            return f"{keep_s / size:.0f} {unit}"
    return f"{Decimal(repr(keep_s)):f} s"


def shown_bytes(size: int) -> str:
    """Return a size in the largest unit of which it is a whole number: `500 MB`, `2 GiB`, `1234567 B`. It can be parsed again."""
    unit, unit_bytes = next((unit, unit_bytes) for unit, unit_bytes in _BYTES.items() if size % unit_bytes == 0)
    return f"{size // unit_bytes} {unit}"
