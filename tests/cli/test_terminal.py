"""What people see."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlog.cli.terminal import age, ago, counted, iso_time, printable


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 ms"),
        (0.85, "850 ms"),
        (1, "1 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3_599, "1 h"),
        (7_200, "2 h"),
        (86_400, "1 d"),
        (1e7, "116 d"),
    ],
)
def test_an_age_is_in_its_largest_fitting_unit(seconds: float, shown: str) -> None:
    assert age(seconds) == shown


def test_what_lies_ahead_counts_as_now() -> None:
    assert ago(2_000_000, 1_000_000) == "0 ms ago"


@given(st.text())
def test_no_text_can_steer_a_terminal(text: str) -> None:
    assert printable(text).isprintable()


def test_an_escape_sequence_is_shown_as_text() -> None:
    assert printable("a\x1b[2Jb\n\u202e") == r"a\x1b[2Jb\n\u202e"


def test_a_count_has_its_noun_in_the_right_number() -> None:
    assert (counted(0, "key"), counted(1, "key"), counted(1_234, "key")) == ("0 keys", "1 key", "1,234 keys")


def test_a_time_is_written_as_in_rfc_3339() -> None:
    assert iso_time(0) == "1970-01-01T00:00:00.000000Z"
