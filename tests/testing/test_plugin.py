"""The pytest plugin, as a user's pytest runs it: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import everlog

SHOP = """
from everlog import App, Delivery, Event, Topic, Tx, testing

orders = Topic("shop.orders", key="customer")
stock_of = Topic("shop.stock", key="order")


@orders.event("shop.order_placed/1")
class OrderPlaced(Event):
    customer: str
    order: str


@stock_of.event("shop.stock_refused/1")
class StockRefused(Event):
    order: str


inventory = App("inventory")
stock = inventory.state("stock/1", int)


@inventory.on(OrderPlaced)
async def reserve(order: OrderPlaced, tx: Tx) -> StockRefused | None:
    if await tx.get(stock, "apple", 0) < 1:
        return StockRefused(order.order)
    tx.add(stock, "apple", -1)
    return None
"""

TESTS = """
import pytest
from shop import OrderPlaced, StockRefused, inventory, reserve, stock

from everlog import testing


async def test_one_handler():
    tx = testing.tx()
    assert await reserve(OrderPlaced("ann", "1"), tx) == StockRefused("1")


async def test_right(world):
    async with world(inventory) as shop:
        await shop.publish(OrderPlaced("ann", "1"))
        await shop.settle()
        assert shop.events(StockRefused) == [StockRefused("1")]


async def test_wrong(world):
    async with world(inventory) as shop:
        await shop.publish(OrderPlaced("ann", "1"))
        await shop.settle()
        assert shop.events(StockRefused) == []
"""


def ran(folder: Path, *arguments: str, mode: str = "auto", tests: str = TESTS) -> str:
    """Run pytest in a folder, and return what it prints."""
    (folder / "shop.py").write_text(SHOP)
    strict = tests.replace("async def test", "@pytest.mark.asyncio\nasync def test")
    (folder / "test_shop.py").write_text(tests if mode == "auto" else strict)
    source = Path(everlog.__file__).parents[1]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EVERLOG_", "PYTEST_"))}
    options = ["-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(folder), "-o", f"asyncio_mode={mode}"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *arguments, str(folder)],
        cwd=folder,
        env={**kept, "PYTHONPATH": f"{source}:{folder}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return ended.stdout + ended.stderr


def test_a_failed_test_shows_what_was_published_and_what_became_of_it(tmp_path: Path) -> None:
    for mode in ("auto", "strict"):
        shown = ran(tmp_path, mode=mode)
        assert "1 failed, 2 passed" in shown, shown
        section = shown.partition("- everlog -")[2]
        assert 'shop.order_placed/1 key ann from test: {"customer":"ann","order":"1"}' in section, shown
        assert "inventory: reserve at 0.000 s published StockRefused(order='1')" in section, shown


def test_the_same_tests_run_on_real_files_with_an_option(tmp_path: Path) -> None:
    shown = ran(tmp_path, "--everlog-real", "-k", "right")
    assert "1 passed" in shown, shown
    assert "--everlog-real" in ran(tmp_path, "--help")


def test_a_pytest_that_makes_no_world_imports_nothing_of_everlog(tmp_path: Path) -> None:
    shown = ran(tmp_path, tests="import sys\n\ndef test_other():\n    assert 'everlog' not in sys.modules\n")
    assert "1 passed" in shown, shown
