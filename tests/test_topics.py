"""What a topic may change about itself."""

from __future__ import annotations

from typing import Any

import msgspec.structs
import pytest

from everlog.errors import SchemaMismatch, TopicMismatch
from everlog.log import TopicSpec
from everlog.topics import check_limits, first_difference, merged

STORED = TopicSpec("shop.orders", key="id", keep_s=60.0, types={"a/1": b'{"type":"object"}'})


def test_the_same_topic_is_the_stored_one_itself() -> None:
    assert merged(STORED, msgspec.structs.replace(STORED)) is STORED
    assert merged(STORED, msgspec.structs.replace(STORED, types={})) is STORED


def test_new_types_are_added_behind_the_stored_ones() -> None:
    found = merged(STORED, msgspec.structs.replace(STORED, types={"b/1": b"{}"}))
    assert dict(found.types) == {"a/1": b'{"type":"object"}', "b/1": b"{}"}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("key", None),
        ("partitions", 4),
        ("hash", "crc"),
        ("keep_s", None),
        ("keep_bytes", 1),
        ("keep_newest", True),
        ("streams", True),
    ],
)
def test_another_setting_is_refused_by_its_name_with_both_values(setting: str, value: Any) -> None:
    with pytest.raises(TopicMismatch, match=f"{setting}={getattr(STORED, setting)!r}.*{value!r}"):
        merged(STORED, msgspec.structs.replace(STORED, **{setting: value}))


@pytest.mark.parametrize(
    ("setting", "declared", "command"),
    [
        ("keep_s", 3_600.0, "`everlog topics set shop.orders --keep-s 3600.0`"),
        ("keep_s", None, "`everlog topics set shop.orders --keep-s none`"),
        ("keep_bytes", 1_000, "`everlog topics set shop.orders --keep-bytes 1000`"),
    ],
)
def test_another_limit_is_refused_with_the_command_that_changes_it(setting: str, declared: Any, command: str) -> None:
    with pytest.raises(TopicMismatch, match=command):
        merged(STORED, msgspec.structs.replace(STORED, **{setting: declared}))


@pytest.mark.parametrize("keep_s", [0, -1.0, float("inf"), float("nan")])
def test_an_age_that_keeps_nothing_or_has_no_end_is_refused(keep_s: float) -> None:
    with pytest.raises(ValueError, match="keep_s above 0"):
        check_limits(keep_s, None)


@pytest.mark.parametrize("keep_bytes", [0, -1, 1 << 63])
def test_a_size_that_keeps_nothing_or_is_too_large_to_store_is_refused(keep_bytes: int) -> None:
    with pytest.raises(ValueError, match="keep_bytes above 0"):
        check_limits(None, keep_bytes)


def test_another_schema_is_refused_with_its_type_and_the_place() -> None:
    with pytest.raises(SchemaMismatch, match=r"a/1.*\$\.type: \"object\" in the log, \"array\" in the code"):
        merged(STORED, msgspec.structs.replace(STORED, types={"a/1": b'{"type":"array"}'}))


@pytest.mark.parametrize(
    ("stored", "declared", "expected"),
    [
        (b'{"a":{"b":1}}', b'{"a":{"b":2}}', "$.a.b: 1 in the log, 2 in the code"),
        (b'{"b":1,"a":1}', b'{"b":2,"a":2}', "$.a: 1 in the log, 2 in the code"),
        (b'{"a":1}', b"{}", "$.a: only in the log, as 1"),
        (b"{}", b'{"a":[1]}', "$.a: only in the code, as [1]"),
        (b'{"a":[1,2]}', b'{"a":[1,3]}', "$.a[1]: 2 in the log, 3 in the code"),
        (b'{"a":[1]}', b'{"a":[1,3]}', "$.a: 1 elements in the log, 2 in the code"),
        (b'{"a":true}', b'{"a":1}', "$.a: true in the log, 1 in the code"),
        (b'{"a":[]}', b'{"a":{}}', "$.a: [] in the log, {} in the code"),
        (b'{"a":1 }', b'{"a":1}', "the same JSON, or none, in other bytes"),
        (b"not json", b"{}", "the same JSON, or none, in other bytes"),
    ],
)
def test_the_first_difference_is_named_by_its_path(stored: bytes, declared: bytes, expected: str) -> None:
    assert first_difference(stored, declared) == expected
