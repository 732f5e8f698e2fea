"""Which field of an event breaks its contract. Slow and exact: asked only after the fast check of a whole batch has failed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from decimal import InvalidOperation
from typing import Any, cast

import msgspec


def find_fault(event: object, decoder: msgspec.json.Decoder[Any]) -> str | None:
    """Say what is wrong with one event, naming the field; ``None`` where it survives the way through JSON."""
    try:
        body = msgspec.json.encode(event)
    except UnicodeEncodeError as error:
        return f"a text holds a lone surrogate, which UTF-8 cannot carry: {str(error.object)[:40]!r}"
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        return f"it cannot be written as JSON: {error}"
    try:
        back = decoder.decode(body)
    except msgspec.ValidationError as error:
        return _not_a_number(event) or f"{_field_first(str(error))}"
    except msgspec.DecodeError as error:
        return str(error)
    return _difference("", event, back)


def is_same(sent: object, back: object) -> bool:
    """Compare, where comparing itself can fail (a signalling NaN of Decimal)."""
    try:
        return bool(sent == back)
    except InvalidOperation:
        return False


def _field_first(message: str) -> str:
    """Turn ``Expected `int`, got `str` - at `$.a.b` `` into ``field a.b: expected int, found str``."""
    what, _, where = message.partition(" - at ")
    where = where.strip("`").removeprefix("$").removeprefix(".")
    what = what.replace("`", "").replace(", got ", ", found ")
    what = what[:1].lower() + what[1:]
    return f"field {where}: {what}" if where else what


def _not_a_number(event: object) -> str | None:
    """Name the field that holds a NaN or an infinity: JSON has neither, and writes null."""
    for path, value in _leaves("", event):
        if isinstance(value, float) and not math.isfinite(value):
            return f"field {path}: expected a finite number, found {value}"
    return None


def _leaves(path: str, value: object) -> list[tuple[str, object]]:
    children = _children(path, value)
    if children is None:
        return [(path, value)]
    return [leaf for inner, child in children for leaf in _leaves(inner, child)]


def _children(path: str, value: object) -> list[tuple[str, object]] | None:
    dot = f"{path}." if path else ""
    if isinstance(value, msgspec.Struct):
        return [(f"{dot}{name}", getattr(value, name)) for name in value.__struct_fields__]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f"{dot}{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        return [(f"{path}[{key!r}]", inner) for key, inner in cast("Mapping[object, object]", value).items()]
    if isinstance(value, list | tuple):
        return [(f"{path}[{index}]", inner) for index, inner in enumerate(cast("Sequence[object]", value))]
    return None


def _difference(path: str, sent: object, back: object) -> str | None:
    if is_same(sent, back):
        return None
    ours, theirs = _children(path, sent), _children(path, back)
    if ours is not None and theirs is not None and type(sent) is type(back) and len(ours) == len(theirs):
        for (inner, mine), (_, other) in zip(ours, theirs, strict=True):
            found = _difference(inner, mine, other)
            if found is not None:
                return found
    if isinstance(sent, float) and not math.isfinite(sent):
        return f"field {path}: expected a finite number, found {sent}"
    return (
        f"field {path or '(all)'}: found {_shown(sent)}, which comes back from JSON as {_shown(back)}: give it the declared type"
    )


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:60] + '…'}"
