"""JSON lines: what is read, in what batches, and how a bad one is named."""

from __future__ import annotations

import io
import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlog import Event, Topic
from everlog.cli.lines import Line, batches, event_of
from everlog.errors import EventRefused, EventTooLarge

topic = Topic("shop.orders", key="customer")


class Item(msgspec.Struct):
    sku: str
    quantity: int = 1


@topic.event("shop.order_placed/1")
class OrderPlaced(Event):
    customer: str
    items: tuple[Item, ...] = ()


contract = topic.contracts["shop.order_placed/1"]


@given(st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line), max_size=30), st.booleans())
def test_each_line_that_is_not_blank_comes_once_with_its_number(lines: list[bytes], has_end: bool) -> None:
    stream = io.BytesIO(b"\n".join(lines) + (b"\n" if has_end else b""))
    read = [line for batch in batches(stream, "f") for line in batch.lines]
    assert read == [Line(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def test_a_batch_has_at_most_a_thousand_lines() -> None:
    found = list(batches(io.BytesIO(b"1\n" * 2_500), "f"))
    assert [len(batch.lines) for batch in found] == [1_000, 1_000, 500]
    assert found[-1].read_bytes == 5_000


def test_a_line_of_a_slow_pipe_does_not_wait_for_others() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb", buffering=0) as pipe:
        pipe.write(b"1\n2\n")
        assert [line.data for line in next(batches(stream, "f")).lines] == [b"1", b"2"]


def test_what_has_no_line_end_is_no_file_of_lines() -> None:
    with pytest.raises(EventTooLarge, match="f:1: expected lines"):
        list(batches(io.BytesIO(b"x" * (17 << 20)), "f"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "f:7: expected a JSON object, found broken JSON: input data was truncated"),
        (b"{]", "f:7: expected a JSON object, found broken JSON: JSON is malformed"),
        (b"[]", "f:7: expected a JSON object, found array"),
        (b"{}", "f:7: object missing required field customer"),
        (b'{"customer": 1}', "f:7: field customer: expected str, found int"),
        (b'{"customer": "c", "items": [{"sku": "a", "quantity": "x"}]}', "f:7: field items[0].quantity: expected int, found str"),
        (
            b'{"customer": "c", "itms": []}',
            "f:7: field itms: 'shop.order_placed/1' has none of that name: it has customer, items",
        ),
        (b'{"customer": "\xff"}', "f:7: "),
    ],
)
def test_a_bad_line_is_named_with_its_field(data: bytes, message: str) -> None:
    with pytest.raises(EventRefused) as refused:
        event_of(Line(7, data), contract, "f")
    assert str(refused.value).startswith(message)


def test_a_good_line_is_the_event() -> None:
    assert event_of(Line(1, b'{"customer": "c", "items": [{"sku": "a"}]}'), contract, "f") == OrderPlaced("c", (Item("a"),))
