"""`everlog contracts`: documents that the official tools of other languages accept."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.shop import Cli
from tests.contracts import node

MANY = """
import enum
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal
from uuid import UUID

import msgspec

from everlog import App, Event, Topic, Tx

orders = Topic("shop.orders", key="customer", partitions=4)
stock = Topic("shop.stock", key="order")


class Colour(enum.Enum):
    RED = "red"


class Line(msgspec.Struct, frozen=True):
    sku: str
    quantity: Annotated[int, msgspec.Meta(ge=1)] = 1


class Parcel(msgspec.Struct, frozen=True):
    name: str
    inside: "Parcel | None" = None


@orders.event("shop.order_placed/2")
class OrderPlaced(Event):
    customer: str
    number: UUID
    at: Annotated[datetime, msgspec.Meta(tz=True)]
    lines: tuple[Line, ...]
    price: Decimal
    colour: Colour = Colour.RED
    note: str | None = None
    size: Literal["s", "m"] = "m"
    parcel: Parcel | None = None


@stock.event("shop.stock_reserved/1")
class StockReserved(Event):
    order: str


inventory = App("inventory")


@inventory.on(OrderPlaced)
async def reserve(order: OrderPlaced, tx: Tx) -> StockReserved:
    return StockReserved(str(order.number))


mail = App("mail")


@mail.on(StockReserved)
async def tell(fact: StockReserved) -> None: ...
"""
ORDER: dict[str, Any] = {
    "customer": "ann",
    "number": "12345678-1234-5678-1234-567812345678",
    "at": "2026-11-24T03:04:05Z",
    "lines": [{"sku": "tea", "quantity": 2}, {"sku": "milk"}],
    "price": "1.10",
}


@pytest.fixture
def many(folder: Path) -> Path:
    (folder / "many.py").write_text(MANY)
    return folder


def document(cli: Cli, *arguments: str) -> Any:
    result = cli("contracts", "many", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_official_parser_of_asyncapi_accepts_the_document_and_finds_all_in_it(many: Path, cli: Cli) -> None:
    found = node.parsed("parse.mjs", document(cli, "--asyncapi"))
    assert found["version"] == "3.0.0"
    assert sorted(found["channels"]) == ["shop.orders", "shop.stock"]
    assert sorted(found["messages"]) == ["shop.order_placed/2", "shop.stock_reserved/1"]
    assert sorted(found["operations"]) == ["receive shop.orders", "receive shop.stock", "send shop.stock"]


@pytest.mark.parametrize("part", ["channels", "info"])
def test_the_parser_refuses_a_document_that_lacks_a_part(many: Path, cli: Cli, part: str) -> None:
    broken = document(cli, "--asyncapi")
    if part == "channels":
        broken["channels"] = {}  # what the operations refer to
    else:
        del broken[part]
    ended = node.ran("parse.mjs", broken)
    assert ended.returncode == 1
    assert ended.stderr


def test_a_schema_stands_alone_and_takes_what_the_contract_takes(many: Path, cli: Cli) -> None:
    schema = document(cli, "--type", "shop.order_placed/2")
    wrong: list[Any] = [
        {**ORDER, "customer": 7},
        {**ORDER, "number": "no uuid"},
        {**ORDER, "lines": [{"sku": "tea", "quantity": 0}]},
        {**ORDER, "size": "xl"},
        {**ORDER, "price": "much"},
        {**ORDER, "parcel": {"name": "a", "inside": {"name": 7}}},
        {name: value for name, value in ORDER.items() if name != "at"},
        [],
    ]
    node.parsed(
        "validate.mjs",
        {
            "schema": schema,
            "right": [ORDER, {**ORDER, "parcel": {"name": "a", "inside": {"name": "b"}}, "extra": 1}],
            "wrong": wrong,
        },
    )
    assert node.ran("validate.mjs", {"schema": schema, "right": [], "wrong": [ORDER]}).returncode == 1


def test_without_a_flag_it_is_all_topics_with_their_types(many: Path, cli: Cli) -> None:
    topics = document(cli)["topics"]
    assert {name: (topic["key"], topic["partitions"], list(topic["types"])) for name, topic in topics.items()} == {
        "shop.orders": ("customer", 4, ["shop.order_placed/2"]),
        "shop.stock": ("order", 8, ["shop.stock_reserved/1"]),
    }
    for topic in topics.values():
        for schema in topic["types"].values():
            node.parsed("validate.mjs", {"schema": schema, "right": [], "wrong": [7]})


def test_what_cannot_be_printed_is_refused(many: Path, cli: Cli) -> None:
    assert "did you mean shop.order_placed/2" in cli("contracts", "many", "--type", "shop.order_placed/1").stderr
    assert cli("contracts", "many", "--type", "shop.order_placed/2", "--asyncapi").exit_code == 2
    assert cli("contracts", "nowhere").exit_code == 2
    (many / "empty.py").write_text("")
    assert "declares no event type" in cli("contracts", "empty").stderr


NUMBERS = itertools.count()


def kept(many: Path, cli: Cli, text: str) -> Any:
    """Check what a changed module keeps of what the first one promised."""
    (many / "promised.json").write_text(cli("contracts", "many").stdout)
    name = f"changed_{next(NUMBERS)}"  # this process imports a module once
    (many / f"{name}.py").write_text(text)
    return cli("contracts", name, "--check", "promised.json")


def test_a_module_that_keeps_its_promises_and_makes_new_ones_passes(many: Path, cli: Cli) -> None:
    same = kept(many, cli, MANY.replace('"red"\n', '"red"\n    """Words for people."""\n'))
    assert same.stdout.partition(" ")[2] == "keeps all 2 types of promised.json\n"
    grown = MANY + '\n\n@stock.event("shop.stock_refused/1")\nclass StockRefused(Event):\n    order: str\n'
    result = kept(many, cli, grown)
    assert (result.exit_code, result.stdout.partition(" ")[2]) == (
        0,
        "keeps all 2 types of promised.json; new: shop.stock_refused/1\n",
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "    customer: str\n",
            "    customer: str\n    added: int\n",
            'properties.added: only in the code, as {"type":"integer"}',
        ),
        ("sku: str\n", "sku: int\n", 'sku.type: "string" in promised.json, "integer" in the code'),
        ('RED = "red"', 'RED = "rot"', '"red" in promised.json, "rot" in the code'),
        ("shop.order_placed/2", "shop.order_placed/3", "shop.order_placed/2: gone"),
        ('"shop.orders"', '"shop.all_orders"', "topic shop.orders: gone"),
        ("partitions=4", "partitions=5", "topic shop.orders: partitions was 4, and is 5"),
        ('"shop.stock", key="order"', '"shop.stock", key=None', "topic shop.stock: key was 'order', and is None"),
    ],
)
def test_a_promise_that_is_broken_is_named(many: Path, cli: Cli, old: str, new: str, said: str) -> None:
    assert old in MANY
    result = kept(many, cli, MANY.replace(old, new))
    assert (result.exit_code, said in result.stdout) == (1, True), result.output
    assert "1 promise of promised.json broken by changed_" in result.stderr
    assert "declare the new one under the next version" in result.stderr


def test_what_is_no_earlier_document_is_refused(many: Path, cli: Cli) -> None:
    (many / "async.json").write_text(cli("contracts", "many", "--asyncapi").stdout)
    (many / "broken.json").write_text("{")
    for file in ("async.json", "broken.json"):
        result = cli("contracts", "many", "--check", file)
        assert (result.exit_code, "expected what `everlog contracts many` has printed" in result.stderr) == (1, True)
    assert "cannot be read: No such file" in cli("contracts", "many", "--check", "nowhere.json").stderr
    assert cli("contracts", "many", "--check", "async.json", "--asyncapi").exit_code == 2
