"""How a record is printed."""

from __future__ import annotations

import msgspec

from everlog.cli.records import cloud_event, human_line
from everlog.contracts.cloudevents import one_line
from everlog.position import Offset
from everlog.record import StoredRecord

RECORD = StoredRecord(
    "shop.orders",
    3,
    Offset(7),
    "id-1",
    "shop.order_placed/1",
    b'{"a": 1}',
    "c1",
    "cli",
    0,
    1_000_000,
    {"traceparent": "t"},
    0,
    "",
    -1,
)


def test_json_has_the_attributes_of_cloudevents_and_the_place_in_the_log() -> None:
    assert msgspec.json.decode(msgspec.json.encode(cloud_event(RECORD, position="token"))) == {
        "specversion": "1.0",
        "id": "id-1",
        "source": "cli",
        "type": "shop.order_placed/1",
        "subject": "c1",
        "time": "1970-01-01T00:00:00.000000Z",
        "datacontenttype": "application/json",
        "data": {"a": 1},
        "headers": {"traceparent": "t"},
        "topic": "shop.orders",
        "partition": 3,
        "offset": 7,
        "logged_at": "1970-01-01T00:00:01.000000Z",
        "position": "token",
    }


def test_data_with_line_ends_stays_on_one_line_with_its_values_untouched() -> None:
    assert one_line(b'{\n "a": 1.10,\n "b": 12345678901234567890123}') == b'{"a":1.10,"b":12345678901234567890123}'


def test_data_that_is_no_json_is_given_as_bytes() -> None:
    event = cloud_event(msgspec.structs.replace(RECORD, data=b"\xff{"), position=None)
    assert event["data_base64"] == "/3s="
    assert "data" not in event


def test_a_line_for_people_is_one_line_whatever_the_record_holds() -> None:
    line = human_line(msgspec.structs.replace(RECORD, key="a\nb\x1b[2J", data=b'{\n"a": 1}')).plain
    assert line.isprintable()
    assert r"shop.orders/3@7 shop.order_placed/1 a\nb\x1b[2J {\n" in line
