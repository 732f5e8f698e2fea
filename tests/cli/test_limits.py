"""Limits as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlog.cli.limits import parse_age_s, parse_bytes, shown_age, shown_bytes, shown_limits


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7d", 604_800.0),
        ("2w", 1_209_600.0),
        ("12h", 43_200.0),
        ("30min", 1_800.0),
        ("90s", 90.0),
        ("90", 90.0),
        ("1.5h", 5_400.0),
        (" 7 D ", 604_800.0),
        ("none", None),
        ("NONE", None),
    ],
)
def test_an_age_is_read(text: str, seconds: float | None) -> None:
    assert parse_age_s(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500MB", 500_000_000),
        ("500mb", 500_000_000),
        ("2GiB", 2 << 30),
        ("1.5kB", 1_500),
        ("64 KiB", 65_536),
        ("1TB", 10**12),
        ("1000", 1_000),
        ("10B", 10),
        ("none", None),
    ],
)
def test_a_size_is_read(text: str, size: int | None) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "d", "7x", "7m", "-1d", "1e3", "1,5h", "seven days", "7d 12h", "0", "0s", "9" * 30 + "d"])
def test_what_is_no_age_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected (an age like 7d|keep_s above 0)"):
        parse_age_s(text)


@pytest.mark.parametrize("text", ["", "MB", "1M", "1 PB", "-1MB", "0", "0.5B", "1.0001kB", "9" * 20 + "TB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected (a size like 500MB|keep_bytes above 0|whole bytes)"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("keep_s", "keep_bytes", "shown"),
    [
        (None, None, "everything"),
        (604_800.0, None, "7 d"),
        (5_400.0, None, "90 min"),
        (90.0, None, "90 s"),
        (0.25, None, "0.25 s"),
        (None, 500_000_000, "500 MB of each partition"),
        (None, 2 << 30, "2 GiB of each partition"),
        (None, 1_234_567, "1234567 B of each partition"),
        (86_400.0, 1_000, "1 d or 1 kB of each partition"),
    ],
)
def test_limits_are_shown_in_their_largest_whole_units(keep_s: float | None, keep_bytes: int | None, shown: str) -> None:
    assert shown_limits(keep_s, keep_bytes) == shown


@given(st.one_of(st.integers(1, 10**10).map(float), st.floats(0.001, 1e9)))
def test_an_age_that_is_shown_is_read_again_as_it_was(keep_s: float) -> None:
    text = shown_age(keep_s)
    assert parse_age_s(text) == keep_s if len(text) < 20 else True


@given(st.integers(1, (1 << 63) - 1))
def test_a_size_that_is_shown_is_read_again_as_it_was(size: int) -> None:
    assert parse_bytes(shown_bytes(size)) == size


@given(st.text())
def test_any_text_is_read_or_refused_with_what_is_expected(text: str) -> None:
    for parse in (parse_age_s, parse_bytes):
        refusal = "expected "
        try:
            parse(text)
        except ValueError as error:
            refusal = str(error)
        assert refusal.startswith("expected ")
