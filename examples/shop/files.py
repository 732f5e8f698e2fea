"""The real orders and articles, as the facts that the shop knows."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from contracts import ArticleListed, Line, Order, OrderPlaced

DATA: Final = Path(__file__).with_name("data")


class _Row(msgspec.Struct):
    order_id: str
    customer_id: str
    store_id: str
    placed_at: str
    lines: tuple[Line, ...]


def read_orders(most: int | None = None) -> Sequence[OrderPlaced]:
    """Return the first `most` orders of the file, in the order of time; all for ``None``."""
    with gzip.open(DATA / "orders-2017-01.jsonl.gz") as file:
        rows = msgspec.json.Decoder(_Row).decode_lines(file.read())
    return [
        OrderPlaced(row.customer_id, Order(row.order_id, row.store_id, _time(row.placed_at), row.lines)) for row in rows[:most]
    ]


def _time(text: str) -> datetime:
    """The file names no zone: the shop reads its times as UTC, by declaration."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def read_articles() -> Sequence[ArticleListed]:
    """Return every article of the catalogue."""
    with gzip.open(DATA / "products.csv.gz", "rt", encoding="utf-8", newline="") as file:
        return [ArticleListed(row["sku"], row["department"], row["category"], row["brand"]) for row in csv.DictReader(file)]
