"""JSON Schemas of event types, in one canonical form, so that two declarations can be compared."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Final, cast

import msgspec

_WORDS_ONLY: Final = frozenset({"title", "description", "examples"})
"""What a schema says to people: another docstring is no other contract."""
_NAMED: Final = frozenset({"properties", "$defs", "patternProperties"})
"""Where the keys are names of the user's and no words of JSON Schema."""


def canonical_schema(cls: type) -> bytes:
    """Return the JSON Schema of a type without titles and descriptions, keys in order."""
    return msgspec.json.encode(bare(msgspec.json.schema(cls)), order="sorted")


def fingerprint(schema: bytes) -> int:
    """Return 63 bits that stand for a canonical schema."""
    return int.from_bytes(blake2b(schema, digest_size=8).digest(), "big") >> 1


def bare(node: object) -> object:
    """Return a schema without what it says to people."""
    if isinstance(node, list):
        return [bare(element) for element in cast("list[object]", node)]
    if not isinstance(node, dict):
        return node
    kept: dict[str, Any] = {}
    for name, value in cast("dict[str, object]", node).items():
        if name in _NAMED and isinstance(value, dict):
            kept[name] = {key: bare(inner) for key, inner in cast("dict[str, object]", value).items()}
        elif name in ("enum", "const", "default", "required"):
            kept[name] = value
        elif name not in _WORDS_ONLY:
            kept[name] = bare(value)
    return kept
