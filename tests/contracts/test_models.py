"""Pydantic models as events: as good as structs, and the same contract."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

import msgspec
import pytest
from pydantic import (
    AliasChoices,
    AliasPath,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    computed_field,
    field_validator,
)

from everlog import Topic
from everlog.contracts.contract import contract_of
from everlog.errors import DeclarationError, EventRefused

orders = Topic("models.orders", key="customer", partitions=4)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Line(BaseModel):
    sku: str
    quantity: int = 1


@orders.event("models.placed/1")
class Placed(BaseModel):
    model_config = ConfigDict(frozen=True)

    customer: str
    number: UUID
    at: AwareDatetime
    lines: tuple[Line, ...]
    price: Decimal
    colour: Colour = Colour.RED
    note: str | None = None
    size: Literal["s", "m"] = "m"
    counts: dict[str, int] = Field(default_factory=dict)
    share: float = 0.5


def placed(**changes: Any) -> Placed:
    values: dict[str, Any] = {
        "customer": "ann",
        "number": UUID(int=7),
        "at": datetime(2026, 11, 24, 3, 4, 5, 678901, tzinfo=UTC),
        "lines": (Line(sku="tea", quantity=2), Line(sku="ümläut")),
        "price": Decimal("1.10"),
        "counts": {"a": 1},
    }
    return Placed(**{**values, **changes})


def test_the_contract_is_that_of_a_struct_with_the_same_fields() -> None:
    topic = Topic("models.orders", key="customer", partitions=4)
    line = msgspec.defstruct("Line", [("sku", str), ("quantity", int, 1)], frozen=True)
    struct: Any = msgspec.defstruct(
        "Placed",
        [
            ("customer", str),
            ("number", UUID),
            ("at", Annotated[datetime, msgspec.Meta(tz=True)]),
            ("lines", tuple[line, ...]),  # type: ignore[valid-type]
            ("price", Decimal),
            ("colour", Colour, Colour.RED),
            ("note", str | None, None),
            ("size", Literal["s", "m"], "m"),
            ("counts", dict[str, int], msgspec.field(default_factory=dict[str, int])),
            ("share", float, 0.5),
        ],
        frozen=True,
    )
    topic.event("models.placed/1")(struct)
    as_struct, as_model = contract_of(struct), contract_of(Placed)
    assert msgspec.json.decode(as_model.schema) == msgspec.json.decode(as_struct.schema)
    assert as_model.fingerprint == as_struct.fingerprint
    (data,) = as_model.encode([placed()])
    assert as_struct.encode([as_struct.decode(data)]) == [data]


E = TypeVar("E")


class Generically(BaseModel, Generic[E]):
    customer: str
    value: E


class Rooted(RootModel[list[int]]):
    pass


class Naive(BaseModel):
    customer: str
    at: datetime


class Nested(BaseModel):
    customer: str
    inner: list[Naive]


class Keyless(BaseModel):
    name: str


class Floating(BaseModel):
    customer: float


class Comparing(BaseModel):
    customer: str

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (Generically, "is generic"),
        (Rooted, "is a RootModel"),
        (Naive, "write pydantic.AwareDatetime"),
        (Nested, "write pydantic.AwareDatetime"),
        (Keyless, "the topic's key is the field 'customer', and Keyless has: name"),
        (Floating, "the key field 'customer' is a <class 'float'>"),
        (Comparing, "remove __eq__"),
    ],
)
def test_a_model_that_cannot_carry_events_is_refused(cls: type[Any], said: str) -> None:
    with pytest.raises(DeclarationError, match=said):
        Topic("models.bad", key="customer").event("models.bad/1")(cls)


def test_a_generic_model_with_its_types_filled_in_is_one() -> None:
    cls = Generically[int]
    Topic("models.generic", key="customer").event("models.generic/1")(cls)
    (data,) = contract_of(cls).encode([cls(customer="a", value=3)])
    assert contract_of(cls).decode(data) == cls(customer="a", value=3)


def of(cls: type[Any]) -> Any:
    Topic("models.case", key=None).event("models.case/1")(cls)
    return contract_of(cls)


def test_what_does_not_come_back_is_refused_with_its_field() -> None:
    class Rounding(BaseModel):
        share: float = 0.0
        secret: str = ""

        @field_validator("share")
        @classmethod
        def rounded(cls, value: float) -> float:
            return round(value, 2)

    contract = of(Rounding)
    whole = Rounding(share=0.5)
    assert contract.decode(contract.encode([whole])[0]) == whole
    with pytest.raises(EventRefused, match="another value: share"):
        contract.encode([Rounding.model_construct(share=0.123, secret="hush")])
    with pytest.raises(EventRefused, match="share") as refused:
        contract.encode([Rounding.model_construct(share=math.nan, secret="hush")])
    assert "hush" not in str(refused.value)
    with pytest.raises(EventRefused, match="share"):
        contract.encode([Rounding.model_construct(share="no number", secret="hush")])


def test_bytes_that_break_the_contract_are_refused_without_showing_them() -> None:
    contract = contract_of(Placed)
    with pytest.raises(EventRefused, match=r"lines\.0\.quantity: Input should be a valid integer") as refused:
        contract.decode(
            msgspec.json.encode(
                {**msgspec.json.decode(contract.encode([placed()])[0]), "lines": [{"sku": "s", "quantity": "hush"}]}
            )
        )
    assert "hush" not in str(refused.value)
    with pytest.raises(EventRefused, match="and 2 more"):
        contract.decode(b"{}")
    with pytest.raises(EventRefused, match="stored bytes break the contract"):
        contract.decode_list(b"[{}]")


def test_aliases_unions_constraints_and_computed_fields_come_back() -> None:
    class Card(BaseModel):
        kind: Literal["card"] = "card"
        digits: str = Field(pattern=r"^\d{4}$")

    class Cash(BaseModel):
        kind: Literal["cash"] = "cash"

    class Paid(BaseModel):
        model_config = ConfigDict(populate_by_name=True)

        customer_id: str = Field(alias="customerId")
        by: Card | Cash = Field(discriminator="kind")
        cents: int = Field(gt=0)

        @computed_field  # type: ignore[prop-decorator]
        @property
        def euros(self) -> float:
            return self.cents / 100

    contract = of(Paid)
    event = Paid(customerId="a", by=Card(digits="1234"), cents=250)
    (data,) = contract.encode([event])
    assert b'"customerId":"a"' in data
    assert contract.decode(data) == event
    assert contract.decode_list(b"[" + data + b"," + data + b"]") == [event, event]
    with pytest.raises(EventRefused, match="cents"):
        contract.decode(data.replace(b"250", b"0"))


@pytest.fixture
def fresh() -> Callable[[str], str]:
    def run(code: str) -> str:
        return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout

    return run


def test_everlog_does_not_import_pydantic_by_itself(fresh: Callable[[str], str]) -> None:
    code = "import sys, everlog\nfrom everlog import Event, Topic\nt = Topic('t', key=None)\n"
    code += "@t.event('t.e/1')\nclass E(Event):\n    n: int\n\nprint('pydantic' in sys.modules)"
    assert fresh(code) == "False\n"


def test_the_names_of_the_fields_are_those_that_it_is_read_under() -> None:
    class Named(BaseModel):
        plain: int = 0
        other: int = Field(0, alias="otherName")
        either: int = Field(0, validation_alias=AliasChoices("a", AliasPath("b", 0)))

        @computed_field  # type: ignore[prop-decorator]
        @property
        def twice(self) -> int:
            return self.plain * 2

    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")

    assert of(Named).field_names() == ["plain", "otherName", "a", "b", "twice"]
    assert of(Open).field_names() is None
