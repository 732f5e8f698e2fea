"""What a topic may say and change about itself: its limits, and the comparison of a stored topic with a declared one, the same in every log."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final, TypeGuard, cast

import msgspec

from everlog.errors import FeatureMissing, SchemaMismatch, TopicMismatch
from everlog.log import Features, TopicSpec

_SETTINGS: Final = ("key", "partitions", "hash", "keep_s", "keep_bytes", "keep_newest", "streams")
_DEFINITION: Final = "#/$defs/"
_VALUES: Final = frozenset({"const", "default", "enum"})
"""Words of JSON Schema behind which stand values, and no schemas."""
_SHOWN_CHARACTERS: Final = 60


def check_limits(keep_s: float | None, keep_bytes: int | None) -> None:
    """Refuse limits of retention that keep nothing, or that no number says.

    Raises:
        ValueError: One of them is not above 0, or has no end.
    """
    if keep_s is not None and not (0 < keep_s < math.inf):
        raise ValueError(f"expected keep_s above 0, or None to keep records of any age, found {keep_s}")
    if keep_bytes is not None and not (0 < keep_bytes < 1 << 63):
        raise ValueError(f"expected keep_bytes above 0, or None to keep all, found {keep_bytes}")


def check_honoured(declared: TopicSpec, features: Features, *, adapter: str) -> None:
    """Refuse what a log cannot do, before the topic is made.

    Raises:
        FeatureMissing: Streams or retention, which the log does not honour.
        ValueError: As `check_limits`.
    """
    check_limits(declared.keep_s, declared.keep_bytes)
    if declared.streams and not features.conditional_append:
        raise FeatureMissing(
            f"topic {declared.name!r} with streams=True",
            adapter=adapter,
            instead="leave it out, and keep what a decision needs in state",
        )
    if (declared.keep_s is not None or declared.keep_bytes is not None or declared.keep_newest) and not features.retention:
        raise FeatureMissing(
            f"topic {declared.name!r} with keep_s, keep_bytes or keep_newest",
            adapter=adapter,
            instead="leave them out: everything is kept",
        )


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
        if known is not None and known != schema and unnamed(known) != unnamed(schema):
            raise SchemaMismatch(type_name, stored.name, first_difference(unnamed(known), unnamed(schema)))
    added = {name: schema for name, schema in declared.types.items() if name not in stored.types}
    return msgspec.structs.replace(stored, types={**stored.types, **added}) if added else stored


def unnamed(schema: bytes) -> bytes:
    """Return a JSON Schema without the names of the code's classes, so that renaming a class is no other contract.

    Its definitions are called `event`, and `part1`, `part2` and so on in the order in which they are referred to. What is no schema with
    definitions comes back as it is.
    """
    try:
        root: object = msgspec.json.decode(schema)
    except msgspec.DecodeError:
        return schema
    if not _is_object(root) or not _is_object(definitions := root.get("$defs")):
        return schema
    rest = {name: value for name, value in root.items() if name != "$defs"}
    order = list(dict.fromkeys(_references(rest)))
    for name in order:  # it grows on the way
        order += [found for found in dict.fromkeys(_references(definitions.get(name))) if found not in order]
    names = {name: f"part{number}" if number else "event" for number, name in enumerate(order)}
    parts = {names[name]: _renamed(definitions[name], names) for name in order if name in definitions}
    return msgspec.json.encode({**cast("dict[str, object]", _renamed(rest, names)), "$defs": parts}, order="sorted")


def _references(node: object) -> Iterator[str]:
    """Yield the names of the definitions that a schema refers to."""
    if _is_array(node):
        for inner in node:
            yield from _references(inner)
    elif _is_object(node):
        for name in sorted(node):
            value = node[name]
            if isinstance(value, str) and value.startswith(_DEFINITION) and name not in _VALUES:
                yield value.removeprefix(_DEFINITION)
            elif name not in _VALUES:
                yield from _references(value)


def _renamed(node: object, names: Mapping[str, str]) -> object:
    if _is_array(node):
        return [_renamed(inner, names) for inner in node]
    if not _is_object(node):
        return node
    renamed: dict[str, object] = {}
    for name, value in node.items():
        if name in _VALUES:
            renamed[name] = value
        elif isinstance(value, str) and value.startswith(_DEFINITION):
            renamed[name] = _DEFINITION + names[value.removeprefix(_DEFINITION)]
        else:
            renamed[name] = _renamed(value, names)
    return renamed


def first_difference(stored: bytes, declared: bytes, *, place: str = "the log") -> str:
    """Say where two different schemas differ first, as a JSON path from `$` and what stands there in each.

    Objects are compared by name in alphabetical order, arrays by index.

    Args:
        stored: The older one.
        declared: The one in the code.
        place: Where the older one is.
    """
    try:
        found = _difference("$", msgspec.json.decode(stored), msgspec.json.decode(declared), place)
    except msgspec.DecodeError:
        found = None
    return found or "the same JSON, or none, in other bytes"


def _difference(path: str, stored: object, declared: object, place: str) -> str | None:
    if _is_object(stored) and _is_object(declared):
        return _object_difference(path, stored, declared, place)
    if _is_array(stored) and _is_array(declared):
        return _array_difference(path, stored, declared, place)
    return _value_difference(path, stored, declared, place)


def _is_object(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)


def _is_array(value: object) -> TypeGuard[list[object]]:
    return isinstance(value, list)


def _object_difference(path: str, stored: dict[str, object], declared: dict[str, object], place: str) -> str | None:
    for name in sorted(stored.keys() | declared.keys()):
        here = f"{path}.{name}"
        if name not in stored:
            return f"{here}: only in the code, as {_shown(declared[name])}"
        if name not in declared:
            return f"{here}: only in {place}, as {_shown(stored[name])}"
        if found := _difference(here, stored[name], declared[name], place):
            return found
    return None


def _array_difference(path: str, stored: list[object], declared: list[object], place: str) -> str | None:
    for index, (old, new) in enumerate(zip(stored, declared, strict=False)):
        if found := _difference(f"{path}[{index}]", old, new, place):
            return found
    if len(stored) != len(declared):
        return f"{path}: {len(stored)} elements in {place}, {len(declared)} in the code"
    return None


def _value_difference(path: str, stored: object, declared: object, place: str) -> str | None:
    # In Python True == 1, and 1 == 1.0; in a schema they are different values.
    if stored == declared and type(stored) is type(declared):
        return None
    return f"{path}: {_shown(stored)} in {place}, {_shown(declared)} in the code"


def _shown(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
