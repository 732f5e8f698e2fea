"""CloudEvents: the official SDK reads what we write and writes what we read, and what is none is refused by its attribute."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from everlog.contracts.cloudevents import incoming, outgoing
from everlog.errors import EventRefused
from everlog.position import Offset
from everlog.record import StoredRecord

RECORD = StoredRecord(
    topic="shop.orders",
    partition=3,
    offset=Offset(5_000_000_000),
    id="loyalty-7.shop.orders.3.12",
    type="shop.order_placed/1",
    data=b'{"order": "1", "price": 1.10}',
    key="ada",
    source="shop",
    time_us=1_795_000_000_123_456,
    logged_at_us=1_795_000_001_000_000,
    headers={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "correlationid": "c"},
    schema=0x1234ABCD,
    producer="",
    sequence=-1,
)
FORMAT = JSONFormat()
LEAST: dict[str, Any] = {"specversion": "1.0", "id": "1", "source": "/a", "type": "t/1", "data": {}}


def written(record: StoredRecord, position: str | None = None) -> bytes:
    return msgspec.json.encode(outgoing(record, position=position))


def test_the_sdk_reads_what_is_written() -> None:
    event = FORMAT.read(None, written(RECORD, "token"))
    assert isinstance(event, CloudEvent)
    assert event.get_id() == "loyalty-7.shop.orders.3.12"
    assert event.get_source() == "shop"
    assert event.get_type() == "shop.order_placed/1"
    assert event.get_subject() == "ada"
    assert event.get_time() == datetime.fromtimestamp(1_795_000_000, UTC).replace(microsecond=123_456)
    assert event.get_dataschema() == "urn:everlog:shop.order_placed/1#1234abcd"
    assert event.get_extension("traceparent") == RECORD.headers["traceparent"]
    assert event.get_extension("everlogtopic") == "shop.orders"
    assert event.get_extension("everlogpartition") == 3
    assert event.get_extension("everlogoffset") == "5000000000"
    assert event.get_extension("everlogposition") == "token"
    assert event.get_data() == {"order": "1", "price": 1.1}


def test_a_number_is_written_as_it_was_given() -> None:
    assert b'"price":1.10' in written(RECORD)


def test_data_that_is_no_json_goes_through_the_sdk_byte_by_byte() -> None:
    event = FORMAT.read(None, written(msgspec.structs.replace(RECORD, data=b"\xff{")))
    assert (event.get_data(), event.get_datacontenttype()) == (b"\xff{", "application/octet-stream")


def test_what_an_event_has_not_is_left_out() -> None:
    bare = msgspec.structs.replace(RECORD, key=None, headers={"empty": ""}, schema=0)
    assert not {"subject", "dataschema", "empty", "everlogposition"} & json.loads(written(bare)).keys()
    assert "subject" not in json.loads(written(msgspec.structs.replace(RECORD, key=""))), "an empty subject is against the rules"
    FORMAT.read(None, written(bare))


def test_a_source_that_is_no_reference_is_encoded() -> None:
    assert json.loads(written(msgspec.structs.replace(RECORD, source="my shop/ä")))["source"] == "my%20shop/%C3%A4"


def test_what_the_sdk_writes_is_read() -> None:
    moment = datetime(2026, 11, 24, 1, 2, 3, 456_789, UTC)
    event = CloudEvent(
        {
            "id": "a-1",
            "source": "https://partner.example/shop",
            "type": "shop.order_placed/1",
            "specversion": "1.0",
            "subject": "ada",
            "time": moment,
            "datacontenttype": "application/json",
            "traceparent": "t",
            "sampledrate": 30,
            "urgent": True,
        },
        {"order": "1", "note": "größer"},
    )
    found = incoming(FORMAT.write(event))
    assert (found.id, found.source, found.type, found.subject) == (
        "a-1",
        "https://partner.example/shop",
        "shop.order_placed/1",
        "ada",
    )
    assert found.time_us == int(moment.timestamp()) * 1_000_000 + 456_789
    assert found.headers == {"traceparent": "t", "sampledrate": "30", "urgent": "true"}
    assert json.loads(found.data) == {"order": "1", "note": "größer"}


def test_json_in_base64_is_json() -> None:
    event = CloudEvent({"id": "1", "source": "s", "type": "t/1", "specversion": "1.0"}, b'{"a": 1}')
    assert incoming(FORMAT.write(event)).data == b'{"a": 1}'


@given(
    headers=st.dictionaries(
        st.from_regex(r"x[a-z0-9]{1,10}", fullmatch=True), st.text(st.characters(codec="utf-8"), min_size=1), max_size=4
    ),
    key=st.none() | st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    time_us=st.integers(-62_000_000_000_000_000, 250_000_000_000_000_000),
    data=st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8")), st.lists),
)
def test_what_is_written_is_read_as_it_was(headers: dict[str, str], key: str | None, time_us: int, data: object) -> None:
    record = msgspec.structs.replace(RECORD, headers=headers, key=key, time_us=time_us, data=msgspec.json.encode(data))
    found = incoming(written(record, "token"))
    assert (found.id, found.source, found.type, found.subject) == (record.id, record.source, record.type, key)
    assert (found.time_us, found.headers, found.data) == (time_us, headers, record.data)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"specversion": "0.3"}, "specversion: expected 1.0 of CloudEvents, found '0.3'"),
        ({"specversion": None}, "specversion: expected 1.0 of CloudEvents, found none"),
        ({"id": ""}, "id: expected text, found an empty one"),
        ({"source": None}, "source: expected text, found none"),
        ({"type": 7}, "attribute type: expected text, found 7"),
        ({"time": "yesterday"}, "time: expected a moment like"),
        ({"time": "2026-11-24T10:00:00"}, "time: expected a moment like"),
        ({"partitionKey": "a"}, "attribute 'partitionKey': expected a name of lower-case letters and digits"),
        ({"nested": {"a": 1}}, "attribute nested: expected text, a whole number or a boolean, found {'a': 1}"),
        ({"rate": 1.5}, "attribute rate: expected text, a whole number or a boolean, found 1.5"),
        ({"bulk": "x" * 8_193}, "attribute bulk: expected at most 8,192 bytes, found 8,193"),
        ({"datacontenttype": "text/xml"}, "datacontenttype: expected application/json, found 'text/xml'"),
        ({"data_base64": "e30="}, "data: expected the event as JSON, found data and data_base64"),
    ],
)
def test_what_is_no_cloudevent_is_refused_by_its_attribute(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(EventRefused) as caught:
        incoming(json.dumps(LEAST | changed).encode())
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[]", "expected a CloudEvent as one JSON object, found no such"),
        (b'{"specversion": ', "expected a CloudEvent as one JSON object, found no such"),
        (b"\xff", "expected a CloudEvent as one JSON object, found no such"),
        (b'{"a": ' + b"[" * 5_000 + b"]" * 5_000 + b"}", "expected a CloudEvent as one JSON object"),
        (
            json.dumps({key: value for key, value in LEAST.items() if key != "data"}).encode(),
            "data: expected the event as JSON, found none",
        ),
        (json.dumps({**{k: v for k, v in LEAST.items() if k != "data"}, "data_base64": "%"}).encode(), "data_base64: "),
    ],
)
def test_what_is_no_object_or_has_no_data_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(EventRefused) as caught:
        incoming(text)
    assert str(caught.value).startswith(message)


def test_null_is_not_set() -> None:
    assert incoming(json.dumps(LEAST | {"subject": None, "extra": None, "time": None}).encode()).headers == {}
