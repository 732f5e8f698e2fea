"""Adding to the number in a row, so that nothing is rounded or turned into another kind in silence."""

from __future__ import annotations

import math
from decimal import Context, Decimal, DecimalException, Inexact, InvalidOperation, Overflow
from typing import Final

import msgspec

_EXACT: Final = Context(prec=1_000, traps=[Inexact, InvalidOperation, Overflow])
"""More digits than an amount has; a sum that needs more is refused and not rounded."""


def total(value: bytes | None, amount: int | float | Decimal) -> bytes | None:
    """Return the row's JSON after `amount` was added to it; ``None`` if they do not add up to a number.

    int and int give an int, a float on either side a float; a Decimal adds to a JSON string that holds one, and to nothing else.
    A bool is no number, and neither is a result that JSON cannot hold (infinity).

    Args:
        value: The JSON in the row; ``None`` for an absent row, which counts as 0 of the amount's kind.
        amount: What is added.
    """
    if isinstance(amount, Decimal):
        return _total_decimal(value, amount)
    before: object = 0 if value is None else _decoded(value)
    if isinstance(amount, bool) or isinstance(before, bool) or not isinstance(before, int | float):
        return None
    try:
        after = before + amount
    except OverflowError:  # an int too large for a float
        return None
    return msgspec.json.encode(after) if isinstance(after, int) or math.isfinite(after) else None


def added(one: int | float | Decimal, other: int | float | Decimal) -> int | float | Decimal | None:
    """Return two amounts for the same row as one; ``None`` if they do not add up to a number."""
    encoded = total(None, one)
    summed = total(encoded, other) if encoded is not None else None
    if summed is None:
        return None
    return msgspec.json.decode(summed, type=Decimal if isinstance(one, Decimal) else int | float)


def _total_decimal(value: bytes | None, amount: Decimal) -> bytes | None:
    before: object = "0" if value is None else _decoded(value)
    if not isinstance(before, str) or not amount.is_finite():
        return None
    try:
        number = Decimal(before)
        return msgspec.json.encode(_EXACT.add(number, amount)) if number.is_finite() else None
    except DecimalException:
        return None


def _decoded(value: bytes) -> object:
    try:
        return msgspec.json.decode(value)
    except msgspec.MsgspecError:
        return None
