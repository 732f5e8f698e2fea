"""Positions: one text form, refused where it is damaged or belongs to another log."""

from __future__ import annotations

import base64
import re
import zlib
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlog.errors import PositionRefused
from everlog.position import BEGINNING, Offset, Position, TopicPartition

LOG = UUID("12345678-1234-4678-9234-567812345678")
OTHER = UUID("87654321-1234-4678-9234-567812345678")

positions = st.builds(
    Position,
    st.just(LOG),
    st.dictionaries(
        st.builds(TopicPartition, st.text(max_size=12), st.integers(0, 63)),
        st.integers(-1, 2**62).map(Offset),
        max_size=6,
    ),
)


@given(positions)
def test_a_position_survives_as_text_that_fits_a_url(position: Position) -> None:
    token = position.token()
    assert re.fullmatch(r"[A-Za-z0-9_-]+", token)
    assert Position.parse(token, log=LOG) == position


def test_the_order_of_the_partitions_does_not_change_the_text() -> None:
    one, two = TopicPartition("a", 1), TopicPartition("b", 0)
    first = Position(LOG, {one: Offset(1), two: BEGINNING})
    assert first.token() == Position(LOG, {two: BEGINNING, one: Offset(1)}).token()


def test_a_position_of_another_log_is_refused_by_both_names() -> None:
    token = Position(OTHER, {TopicPartition("a", 0): Offset(5)}).token()
    with pytest.raises(PositionRefused, match=f"{OTHER}.*{LOG}"):
        Position.parse(token, log=LOG)


@given(positions, st.data())
def test_a_changed_character_is_refused_or_changes_nothing(position: Position, data: st.DataObject) -> None:
    token = position.token()
    at = data.draw(st.integers(0, len(token) - 1))
    changed = token[:at] + data.draw(st.sampled_from("ABCxyz019-_")) + token[at + 1 :]
    try:
        found = Position.parse(changed, log=LOG)
    except PositionRefused:
        return
    assert found == position  # the last character has bits that stand for nothing


@given(st.text())
def test_any_other_text_is_refused_by_the_same_error(text: str) -> None:
    with pytest.raises(PositionRefused):
        Position.parse(text, log=LOG)


def test_a_position_of_a_newer_everlog_says_so() -> None:
    body = msgspec.msgpack.encode([2, LOG.bytes, {}])
    token = base64.urlsafe_b64encode(zlib.crc32(body).to_bytes(4, "big") + body).decode().rstrip("=")
    with pytest.raises(PositionRefused, match="newer Everlog"):
        Position.parse(token, log=LOG)


@pytest.mark.parametrize("parts", [{0: -2}, {0: 1 << 63}, {-1: 5}])
def test_a_token_that_somebody_made_up_is_refused_where_no_record_can_be(parts: dict[int, int]) -> None:
    identity = UUID(int=7)
    body = msgspec.msgpack.encode((1, identity.bytes, {"orders": parts}))
    token = base64.urlsafe_b64encode(zlib.crc32(body).to_bytes(4, "big") + body).decode().rstrip("=")
    with pytest.raises(PositionRefused, match="expected a position"):
        Position.parse(token, log=identity)
