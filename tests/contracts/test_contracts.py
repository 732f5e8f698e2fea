"""Contracts: what may be declared, and what may be published under it."""

from __future__ import annotations

import dataclasses
import enum
import json
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, NamedTuple, TypedDict, cast
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlog import Event, Record, Topic
from everlog.contracts.contract import Contract, contract_of
from everlog.contracts.envelope import Origin, address, check_headers
from everlog.contracts.schema import canonical_schema, fingerprint
from everlog.errors import DeclarationError, EventRefused, EventTooLarge, KeyRefused, SchemaMismatch
from everlog.key import partition_of
from everlog.position import Offset, Position, TopicPartition
from everlog.record import MAX_DATA_BYTES, StoredRecord
from everlog.topics import merged

Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.Enum):
    LOW = 1


class Line(msgspec.Struct, frozen=True):
    sku: str
    price: Decimal


class WideLine(Line, frozen=True):
    more: int = 0


@dataclasses.dataclass(frozen=True)
class Note:
    text: str


class Whole(Event):
    key: str
    count: int = 0
    ratio: float = 0.0
    maybe: float | None = None
    text: str | None = None
    flag: bool = False
    number: UUID | None = None
    price: Decimal | None = None
    at: Moment | None = None
    day: date | None = None
    colour: Colour | None = None
    lines: tuple[Line, ...] = ()
    names: list[str] = msgspec.field(default_factory=list[str])
    table: Mapping[str, int] = msgspec.field(default_factory=dict[str, int])
    note: Note | None = None
    raw: bytes = b""
    seen: frozenset[int] = frozenset()


topic = Topic("t", key="key")
contract = Contract(topic, "whole/1", Whole)
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", 2**70),
        ("ratio", 1.5),
        ("ratio", 3),
        ("maybe", None),
        ("text", "ä☃𝄞 \x00"),
        ("number", UUID(int=5)),
        ("price", Decimal("1.50")),
        ("price", Decimal(10) ** 40),
        ("at", MOMENT),
        ("at", MOMENT.astimezone(timezone(timedelta(hours=5)))),
        ("day", date(2026, 1, 1)),
        ("colour", Colour.RED),
        ("lines", (Line("a", Decimal(1)),)),
        ("names", ["a"]),
        ("table", {"a": 1}),
        ("note", Note("x")),
        ("raw", b"\x00\xff"),
        ("seen", frozenset({1, 2})),
    ],
)
def test_what_is_of_its_type_comes_back_equal(field: str, value: object) -> None:
    if field == "count":
        value = 2**62
    event = Whole("k", **{field: value})  # type: ignore[arg-type]
    (data,) = contract.encode([event])
    assert contract.decode(data) == event
    assert contract.decode_list(b"[" + data + b"," + data + b"]") == [event, event]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", "1"),
        ("count", True),
        ("count", 1.5),
        ("count", None),
        ("ratio", float("nan")),
        ("ratio", float("inf")),
        ("ratio", "1"),
        ("maybe", float("nan")),  # as null it would pass for an absent one
        ("maybe", float("-inf")),
        ("text", UUID(int=5)),
        ("text", MOMENT),
        ("text", date(2026, 1, 1)),
        ("text", Colour.RED),
        ("text", Decimal(1)),
        ("text", b"x"),
        ("text", "\ud800"),
        ("flag", 1),
        ("number", "00000000-0000-0000-0000-000000000005"),
        ("price", Decimal("NaN")),
        ("price", Decimal("sNaN")),
        ("price", "1.5"),
        ("at", datetime(2026, 1, 1)),  # noqa: DTZ001 that is the fault
        ("at", "2026-01-01T00:00:00Z"),
        ("day", MOMENT),
        ("day", "2026-01-01"),
        ("colour", "red"),
        ("colour", Level.LOW),
        ("lines", [Line("a", Decimal(1))]),
        ("lines", (WideLine("a", Decimal(1), 2),)),
        ("lines", ({"sku": "a", "price": "1"},)),
        ("names", ("a",)),
        ("names", [1]),
        ("names", ["a", "\udfff"]),
        ("table", {1: 1}),
        ("table", {"a": "1"}),
        ("note", {"text": "x"}),
        ("note", Note(1)),  # type: ignore[arg-type]
        ("raw", "AP8="),
        ("count", object()),
    ],
)
def test_what_is_not_of_its_type_is_refused_by_its_field(field: str, value: object) -> None:
    good = Whole("k")
    for events in ([Whole("k", **{field: value})], [good, Whole("k", **{field: value}), good]):  # type: ignore[arg-type]
        with pytest.raises(EventRefused) as caught:
            contract.encode(events)
        assert "whole/1" in str(caught.value)
        assert len(events) == 1 or "event 2 of 3" in str(caught.value)
        if not (isinstance(value, str) or "surrogate" in str(caught.value) or "written as JSON" in str(caught.value)):
            assert field in str(caught.value)


def test_an_event_that_holds_itself_is_refused() -> None:
    names: list[Any] = []
    names.append(names)
    with pytest.raises(EventRefused):
        contract.encode([Whole("k", names=names)])


def test_a_million_bytes_pass_and_one_more_does_not() -> None:
    empty = len(contract.encode([Whole("", text="")])[0])
    (data,) = contract.encode([Whole("", text="x" * (MAX_DATA_BYTES - empty))])
    assert len(data) == MAX_DATA_BYTES
    with pytest.raises(EventTooLarge, match=r"1,000,000.*1,000,001"):
        contract.encode([Whole("", text="x" * (MAX_DATA_BYTES - empty + 1))])
    assert len(contract.encode([Whole("", text="x" * 600_000)] * 3)) == 3


clean = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
wholes = st.builds(
    Whole,
    clean,
    count=st.integers(-(2**63), 2**63 - 1),
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    maybe=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    text=st.none() | clean,
    number=st.none() | st.uuids(),
    price=st.none() | st.decimals(allow_nan=False, allow_infinity=False),
    at=st.none() | st.datetimes(timezones=st.just(UTC)),
    colour=st.none() | st.sampled_from(Colour),
    lines=st.lists(st.builds(Line, clean, st.decimals(allow_nan=False, allow_infinity=False)), max_size=3).map(tuple),
    table=st.dictionaries(clean, st.integers(-5, 5), max_size=3),
    raw=st.binary(max_size=10),
)


@given(st.lists(wholes, min_size=1, max_size=4))
def test_every_event_of_its_types_comes_back_equal_as_json(events: list[Whole]) -> None:
    datas = contract.encode(events)
    assert [contract.decode(data) for data in datas] == events
    assert all(isinstance(json.loads(data), dict) for data in datas)


anything: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.uuids(),
    st.decimals(),
    st.dates(),
    st.datetimes(),
    st.binary(),
    st.sampled_from(Colour),
)


@given(st.sampled_from([name for name in Whole.__struct_fields__ if name != "key"]), anything)
def test_whatever_is_accepted_comes_back_equal(field: str, value: Any) -> None:
    event = Whole("k", **{field: value})
    try:
        (data,) = contract.encode([event])
    except EventRefused:
        return
    assert contract.decode(data) == event


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b'{"count":1}', b'{"key":1}', b'{"key":"a","count":"1"}', b'{"key":"\xff"}', b"[" * 5_000]
)
def test_bytes_that_break_the_contract_are_refused(data: bytes) -> None:
    with pytest.raises(EventRefused, match="whole/1"):
        contract.decode(data)
    with pytest.raises(EventRefused, match="whole/1"):
        contract.decode_list(b"[" + data + b"]" if data else b"[")


# ---- declaring ----


def declare(fields: list[Any], key: str | None = "key", **options: Any) -> None:
    cast("Any", Topic("t", key=key).event("x/1"))(msgspec.defstruct("X", fields, bases=(Event,), frozen=True, **options))


class Wild:
    pass


@pytest.mark.parametrize(
    ("type_", "says"),
    [
        (datetime, "without a zone"),
        (datetime | None, "without a zone"),
        (list[datetime], "without a zone"),
        (dict[str, tuple[datetime, ...]], "without a zone"),
        (Wild, "JSON"),
        (list[Wild], "JSON"),
        (complex, "JSON"),
        (msgspec.Raw, "JSON"),
    ],
)
def test_a_field_that_json_does_not_prove_is_refused_when_it_is_declared(type_: Any, says: str) -> None:
    with pytest.raises(DeclarationError, match=says):
        declare([("key", str), ("field", type_)])


@pytest.mark.parametrize("type_", [float, bool, bytes, list[str], datetime, Line, float | None, dict[str, str]])
def test_a_key_of_another_type_is_refused_when_it_is_declared(type_: Any) -> None:
    with pytest.raises(DeclarationError):
        declare([("key", type_)])


@pytest.mark.parametrize("type_", [str, int, UUID, Decimal, Colour, str | None, str | int])
def test_a_key_of_these_types_is_one(type_: Any) -> None:
    declare([("key", type_)])


def test_a_class_that_does_not_fit_its_topic_is_refused() -> None:
    with pytest.raises(DeclarationError, match="the topic's key is the field 'key'"):
        declare([("other", str)])
    with pytest.raises(DeclarationError, match="eq=False"):
        declare([("key", str)], eq=False)
    with pytest.raises(DeclarationError, match=r"everlog\.Event"):
        Topic("t", key=None).event("x/1")(Wild)  # type: ignore[type-var]

    @dataclasses.dataclass
    class Uncompared:
        key: str
        field: int = dataclasses.field(default=0, compare=False)

    @dataclasses.dataclass(eq=False)
    class NoEq:
        key: str

    for cls, says in ((Uncompared, "compare=False"), (NoEq, "eq=False")):
        with pytest.raises(DeclarationError, match=says):
            Topic("t", key="key").event("x/1")(cls)


class Tree(TypedDict):
    children: list[Tree]


class Pair(NamedTuple):
    one: int
    other: list[Pair]


def test_types_that_hold_themselves_can_be_declared() -> None:
    class Node(Event):
        key: str
        tree: Tree
        pair: Pair | None = None

    made = Topic("t", key="key").event("x/1")
    made(Node)
    node = Node("a", {"children": [{"children": []}]}, Pair(1, [Pair(2, [])]))
    assert contract_of(Node).decode(contract_of(Node).encode([node])[0]) == node


def test_one_class_one_type() -> None:
    orders = Topic("t", key="key")

    @orders.event("x/1")
    class First(Event):
        key: str

    with pytest.raises(DeclarationError, match="already"):
        orders.event("x/2")(First)
    with pytest.raises(DeclarationError, match="already"):

        @orders.event("x/1")
        class Second(Event):
            key: str

    class Child(First, frozen=True):
        pass

    with pytest.raises(EventRefused, match="no contract"):
        contract_of(Child)
    with pytest.raises(EventRefused):
        contract_of("text")  # type: ignore[arg-type]
    assert set(orders.contracts) == {"x/1"}


@pytest.mark.parametrize("name", ["", "x", "x/0", "x/01", "x/a", "/1", "x y/1", "ä/1", "x/1/2 ", "x/" + "9" * 10])
def test_a_type_needs_a_version(name: str) -> None:
    with pytest.raises(DeclarationError, match="version"):
        Topic("t", key=None).event(name)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "a b"},
        {"name": "-a"},
        {"name": "x" * 250},
        {"partitions": 0},
        {"partitions": 5_000},
        {"keep_s": 0},
        {"keep_bytes": -1},
        {"keep_s": float("nan")},
        {"keep_s": float("inf")},
        {"keep_newest": True},
    ],
)
def test_a_topic_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError):
        cast("Any", Topic)(**{"name": "t", "key": None, **wrong})


# ---- schemas ----


def test_words_for_people_are_no_part_of_a_schema_and_names_of_fields_are() -> None:
    def make(doc: str, field: str, type_: Any, title: str) -> bytes:
        return canonical_schema(
            msgspec.defstruct(
                "S", [(field, Annotated[type_, msgspec.Meta(description=title, title=title)])], namespace={"__doc__": doc}
            )
        )

    one = make("about this", "title", int, "a")
    assert one == make("about that", "title", int, "b")
    assert one != make("about this", "description", int, "a")
    assert one != make("about this", "title", str, "a")
    assert b'"title"' in one
    assert b"about" not in one
    assert 0 <= fingerprint(one) < 2**63
    assert fingerprint(one) != fingerprint(make("", "title", str, "a"))


# ---- addressing ----

free = Topic("f", key=None, partitions=3)
other = Topic("o", key="number", partitions=4)


@free.event("f/1")
class Loose(Event):
    n: int = 0


@other.event("o/1")
class Numbered(Event):
    number: Decimal | int | None = None


painted = Topic("p", key="colour", partitions=4)


@painted.event("p/1")
class Painted(Event):
    colour: Colour


@other.event("o/2")
class AlsoNumbered(Event):
    number: UUID


def _second(_: Topic) -> int:
    return 2


ORIGIN = Origin("me", 7, None, _second)


@pytest.mark.parametrize(
    ("key", "text"),
    [(Decimal("1.500"), "1.5"), (Decimal("-0.0"), "0"), (Decimal("1E+3"), "1000"), (17, "17"), (Colour.RED, "red")],
)
def test_a_key_is_its_canonical_text_and_finds_its_partition(key: Any, text: str) -> None:
    ((_, (record,), _),) = address([Painted(key) if isinstance(key, Colour) else Numbered(key)], ORIGIN)
    assert (record.key, record.partition, record.source, record.time_us) == (text, partition_of(text, 4), "me", 7)


def test_a_key_that_is_none_is_refused_and_one_without_a_key_goes_where_the_origin_says() -> None:
    with pytest.raises(KeyRefused, match="number"):
        address([Numbered(None)], ORIGIN)
    ((_, (record,), _),) = address([Loose()], ORIGIN)
    assert (record.key, record.partition) == (None, 2)
    ((_, (keyed,), _),) = address([Loose()], ORIGIN, key="k")
    assert (keyed.key, keyed.partition) == ("k", partition_of("k", 3))
    for key in (True, 1.5, "\ud800", b"x"):
        with pytest.raises(KeyRefused):
            address([Loose()], ORIGIN, key=key)


def test_events_of_several_types_keep_their_order_within_each_topic() -> None:
    number = uuid4()
    events = [Loose(1), AlsoNumbered(number), Loose(2), Numbered(1), AlsoNumbered(number)]
    addressed = {target.topic.name: target for target in address(events, ORIGIN, ids=[str(n) for n in range(5)])}
    assert [record.id for record in addressed["f"].records] == ["0", "2"]
    assert [record.type for record in addressed["o"].records] == ["o/2", "o/1", "o/2"]
    assert list(addressed["o"].places) == [1, 3, 4]
    assert address([], ORIGIN) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"A": "x"},
        {"a-b": "x"},
        {"": "x"},
        {"id": "x"},
        {"data": "x"},
        {"a": 1},
        {"a": None},
        {"a": "\ud800"},
        {"a" * 65: "x"},
        {1: "x"},
    ],
)
def test_a_header_that_is_no_extension_is_refused(headers: Any) -> None:
    with pytest.raises(EventRefused, match="header"):
        check_headers(headers)
    check_headers({"traceparent": "00-1", "x1": ""})
    check_headers(None)


# ---- records ----


def test_a_record_decodes_its_event_when_it_is_asked_for() -> None:
    stored = StoredRecord(
        "t", 1, Offset(5), "id", "whole/1", b'{"key":"a"}', "a", "me", 1_000_000, 2_000_000, {"x": "y"}, 0, "", -1
    )
    position = Position(uuid4(), {TopicPartition("t", 1): Offset(5)})
    record = Record(stored, contract, lambda: position)
    assert record.event == Whole("a")
    assert record.event is record.event
    assert (record.id, record.source, record.type, record.topic, record.partition, record.offset) == (
        "id",
        "me",
        "whole/1",
        "t",
        1,
        5,
    )
    assert (record.key, record.position, dict(record.headers)) == ("a", position, {"x": "y"})
    assert (record.time, record.logged_at) == (
        datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC),
        datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC),
    )
    assert repr(record) == "Record('whole/1', key='a', t/1@5)"
    broken = Record(msgspec.structs.replace(stored, data=b"{}"), contract, lambda: position)
    with pytest.raises(EventRefused):
        _ = broken.event


def schema_as(names: dict[str, str], *, extra: str = "") -> bytes:
    """Return the schema of an event whose classes have other names."""
    text = (
        """
class Colour(enum.Enum):
    RED = "red"

class Box(msgspec.Struct, frozen=True, tag="box"):
    colour: Colour = Colour.RED

class Bag(msgspec.Struct, frozen=True, tag="bag"):
    inside: "Bag | Box | None" = None

class Parcel(Event):
    order: str
    parts: tuple[Bag | Box, ...]
"""
        + extra
    )
    for old, new in names.items():
        text = re.sub(rf"\b{old}\b", new, text)
    space: dict[str, Any] = {"enum": enum, "msgspec": msgspec, "Event": Event, "__name__": __name__}
    exec(text, space)
    for name in ("Bag", "Box", "Colour"):
        globals()[names.get(name, name)] = space[names.get(name, name)]  # where a name in quotes is looked for
    return cast(
        "bytes", Topic("parcels", key="order").event("parcel/1")(space[names.get("Parcel", "Parcel")]).__everlog_contract__.schema
    )


def test_classes_may_be_renamed_and_the_contract_is_the_same() -> None:
    first = schema_as({})
    assert schema_as({"Colour": "Aardvark", "Box": "Zebra", "Bag": "Ant", "Parcel": "Bee"}) == first
    assert not re.search(rb"Colour|Box|Bag|Parcel", first)
    assert schema_as({}, extra="    weight: int\n") != first
    assert schema_as({"box": "case"}) != first, "a tag is on the wire"


def test_a_schema_that_was_stored_with_names_of_classes_is_the_same_contract() -> None:
    parcels = Topic("parcels", key="order")

    @parcels.event("parcel/1")
    class Parcel(Event):
        order: str

    contract, declared = contract_of(Parcel), parcels.spec()
    stored = msgspec.structs.replace(declared, types={"parcel/1": contract.named_schema})
    assert contract.named_schema != contract.schema
    assert merged(stored, declared) is stored
    with pytest.raises(SchemaMismatch, match=r"event\.properties\.order\.type"):
        merged(stored, msgspec.structs.replace(declared, types={"parcel/1": contract.schema.replace(b"string", b"integer")}))
