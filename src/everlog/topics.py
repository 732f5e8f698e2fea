"""What a topic may change about itself: the comparison of a stored topic with a declared one, the same in every log."""

from __future__ import annotations

import dataclasses
from typing import Final, cast

import msgspec

from everlog.errors import SchemaMismatch, TopicMismatch
from everlog.log import TopicSpec

_SETTINGS: Final = ("key", "partitions", "hash", "keep_s", "keep_bytes", "streams")
_SHOWN_CHARACTERS: Final = 60


def merged(stored: TopicSpec, declared: TopicSpec) -> TopicSpec:
    """Return what the log should hold of the topic: `stored`, with the types that only `declared` has.

    It is `stored` itself where nothing is added, so that a log can see that there is nothing to write.

    Raises:
        TopicMismatch: Another key, number of partitions, hash, retention or streams; names the first that differs.
        SchemaMismatch: Another schema under one of the types; names the type and the first place that differs.
    """
    for setting in _SETTINGS:
        was, is_now = getattr(stored, setting), getattr(declared, setting)
        if was != is_now:
            raise TopicMismatch(stored.name, setting, stored=was, declared=is_now)
    for type_name, schema in declared.types.items():
        known = stored.types.get(type_name)
        if known is not None and known != schema:
            raise SchemaMismatch(type_name, stored.name, first_difference(known, schema))
    added = {name: schema for name, schema in declared.types.items() if name not in stored.types}
    return dataclasses.replace(stored, types={**stored.types, **added}) if added else stored


def first_difference(stored: bytes, declared: bytes) -> str:
    """Say where two different schemas differ first, as a JSON path from `$` and what stands there in each.

    Objects are compared by name in alphabetical order, arrays by index.
    """
    try:
        found = _difference("$", msgspec.json.decode(stored), msgspec.json.decode(declared))
    except msgspec.DecodeError:
        found = None
    return found or "the same JSON in other bytes"


def _difference(path: str, stored: object, declared: object) -> str | None:
    if isinstance(stored, dict) and isinstance(declared, dict):
        left, right = cast("dict[str, object]", stored), cast("dict[str, object]", declared)
        for name in sorted(left.keys() | right.keys()):
            here = f"{path}.{name}"
            if name not in left:
                return f"{here}: only in the code, as {_shown(right[name])}"
            if name not in right:
                return f"{here}: only in the log, as {_shown(left[name])}"
            if found := _difference(here, left[name], right[name]):
                return found
        return None
    if isinstance(stored, list) and isinstance(declared, list):
        olds, news = cast("list[object]", stored), cast("list[object]", declared)
        for index, (old, new) in enumerate(zip(olds, news, strict=False)):
            if found := _difference(f"{path}[{index}]", old, new):
                return found
        if len(olds) != len(news):
            return f"{path}: {len(olds)} elements in the log, {len(news)} in the code"
        return None
    # In Python True == 1, and 1 == 1.0; in a schema they are different values.
    if stored == declared and type(stored) is type(declared):
        return None
    return f"{path}: {_shown(stored)} in the log, {_shown(declared)} in the code"


def _shown(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
