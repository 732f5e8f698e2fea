"""Keys: one text in every language, and the partition that Kafka's Java client gives it."""

from __future__ import annotations

import decimal
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlog.errors import KeyRefused
from everlog.key import canonical_text, murmur2, partition_of


def java_murmur2(data: bytes) -> int:
    """`Utils.murmur2` of Kafka's client, line by line as it is in Java, for comparison."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    length = len(data)
    h = (0x9747B28C ^ length) & mask
    for i in range(length // 4):
        k = data[i * 4] | data[i * 4 + 1] << 8 | data[i * 4 + 2] << 16 | data[i * 4 + 3] << 24
        k = k * m & mask
        k ^= k >> 24
        k = k * m & mask
        h = h * m & mask
        h ^= k
    rest = length & ~3
    if length % 4 == 3:
        h ^= data[rest + 2] << 16
    if length % 4 >= 2:
        h ^= data[rest + 1] << 8
    if length % 4 >= 1:
        h ^= data[rest]
        h = h * m & mask
    h ^= h >> 13
    h = h * m & mask
    return h ^ h >> 15


@given(st.binary(max_size=40))
def test_murmur2_is_that_of_kafka_for_any_bytes(data: bytes) -> None:
    assert murmur2(data) == java_murmur2(data)


@given(st.text(max_size=20), st.integers(1, 64))
def test_a_partition_is_kafkas_for_any_key_and_count(key: str, partitions: int) -> None:
    assert partition_of(key, partitions) == (java_murmur2(key.encode()) & 0x7FFFFFFF) % partitions


@given(st.text() | st.integers() | st.uuids())
def test_text_ints_and_uuids_stand_for_themselves(value: str | int | UUID) -> None:
    assert canonical_text(value) == str(value)


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**15), max_value=10**15, places=6))
def test_equal_decimals_have_one_text_without_exponent(value: Decimal) -> None:
    text = canonical_text(value)
    assert text == canonical_text(value * Decimal("1.000"))
    assert Decimal(text) == value
    assert "E" not in text
    assert text != "-0"


def test_decimals_that_differ_behind_the_28th_digit_are_two_keys() -> None:
    assert canonical_text(Decimal("1." + "0" * 30 + "1")) != canonical_text(Decimal(1))


def test_the_text_of_a_decimal_does_not_depend_on_the_callers_precision() -> None:
    with decimal.localcontext(decimal.Context(prec=3)):
        assert canonical_text(Decimal("12345.5")) == "12345.5"


@pytest.mark.parametrize("value", [True, False, 1.0, None, b"k", ("a",), "\ud800", Decimal("NaN"), Decimal("-Infinity")])
def test_what_has_no_text_is_refused(value: object) -> None:
    with pytest.raises(KeyRefused):
        canonical_text(value)


def test_an_empty_text_is_a_key() -> None:
    assert canonical_text("") == ""
    assert 0 <= partition_of("", 8) < 8
