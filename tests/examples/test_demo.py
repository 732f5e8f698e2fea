"""The demo as a whole: it ends by itself, adds up, and the figures that it prints are those that come out of its input."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from statistics import mean, median, stdev

import psycopg
import pytest
from tests.postgres import PostgresSchema
from tests.servers import postgres_url

from contracts import OrderPlaced
from demo_acts import LATE, SERVICES
from demo_fraud import Judge
from files import read_orders
from world import bursts, with_bursts

DEMO = Path(__file__).parents[2] / "examples" / "shop" / "demo.py"
REAL = read_orders(1_500)
INPUT = with_bursts(REAL, 6)
"""What `--fast` plays."""


def suspects(orders: Sequence[OrderPlaced]) -> set[str]:
    """What fraud is to suspect, by its rules and the whole history of each customer."""
    found = set[str]()
    histories: dict[str, list[OrderPlaced]] = defaultdict(list)
    for fact in orders:
        history = histories[fact.customer_id]
        at, cents = fact.order.placed_at, fact.order.total_cents
        amounts = [one.order.total_cents for one in history if one.order.id not in found]
        is_fast = sum(at - one.order.placed_at < timedelta(minutes=10) for one in history) >= 3
        is_large = len(amounts) >= 5 and cents > 100_00 and cents > mean(amounts) + 6 * stdev(amounts)
        if is_fast or is_large:
            found.add(fact.order.id)
        history.append(fact)
    return found


def forecast_errors(orders: Sequence[OrderPlaced]) -> tuple[float, float]:
    """Both errors: of a mean in which each day counts nine tenths of the next one, and of the day before."""
    asked: dict[str, Counter[date]] = defaultdict(Counter)
    for fact in orders:
        asked[fact.order.store_id][fact.order.placed_at.date()] += 1
    came, missed, naively = 0, 0.0, 0
    for counts in asked.values():
        days = [min(counts) + timedelta(n) for n in range((max(counts) - min(counts)).days)]  # the last one has not ended
        for yesterday, day in pairwise(days):
            past = [one for one in days if one < day]
            weights = {one: 0.9 ** (yesterday - one).days for one in past}
            guess = sum(weights[one] * counts[one] for one in past) / sum(weights.values())
            came += counts[day]
            missed += abs(counts[day] - guess)
            naively += abs(counts[day] - counts[yesterday])
    return missed / came, naively / came


def fraud_words(orders: Sequence[OrderPlaced], injected: Sequence[Sequence[OrderPlaced]], found: set[str]) -> str:
    """What is to be printed of bursts and alarms."""
    ids = [fact.order.id for fact in orders]
    fraudulent = {fact.order.id for burst in injected for fact in burst}
    caught = [[fact.order.id for fact in burst] for burst in injected if any(fact.order.id in found for fact in burst)]
    alarms = [next(number for number, one in enumerate(burst) if one in found) for burst in caught]
    apart = [ids.index(burst[number]) - ids.index(burst[0]) + 1 for burst, number in zip(caught, alarms, strict=True)]
    false = len(found - fraudulent)
    return (
        f"{len(caught)} of {len(injected)} bursts caught, after {median(alarms) + 1:.0f} of their orders, {median(apart):.0f} of the shop's; "
        f"{false} false alarm{'' if false == 1 else 's'} in {len(orders) - len(fraudulent):,} orders"
    )


def played(folder: Path, *options: str) -> str:
    """Play the demo, and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("EVERLOG_", "SHOP_"))}
    command = [sys.executable, str(DEMO), "--fast", "--folder", str(folder / "demo"), *options]
    demo = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        printed, _ = demo.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        demo.terminate()  # it ends its processes
        printed, _ = demo.communicate(timeout=30)
        pytest.fail(f"the demo did not end:\n{printed}")
    assert demo.returncode == 0, printed
    return printed


def test_the_same_shop_runs_on_postgresql(tmp_path: Path) -> None:
    schema = PostgresSchema(postgres_url())
    try:
        stores = schema.url.replace(f"schema={schema.name}", f"schema={schema.name}_{{app}}")
        printed = played(tmp_path, "--log-url", schema.url, "--store-url", stores)
        with psycopg.connect(schema.server, autocommit=True) as connection:
            for app in (*SERVICES, LATE):
                connection.execute(f'DROP SCHEMA "{schema.name}_{app}" CASCADE'.encode())
    finally:
        schema.drop()
    assert f"decided    {len(INPUT):,}, each exactly once" in printed
    assert "0 lost, 0 doubled" in printed
    assert "they add up" in printed


def test_the_demo_adds_up_and_prints_the_figures_of_its_input(tmp_path: Path) -> None:
    printed = played(tmp_path, "--picture", str(tmp_path / "demo.svg"))
    drawn = (tmp_path / "demo.svg").read_text()
    assert "killed" in drawn
    assert "@font-face" not in drawn, "it would ask the network"
    found, injected = suspects(INPUT), bursts(REAL, 6)
    forecast, naive = forecast_errors([fact for fact in INPUT if fact.order.id not in found])
    for line in (
        f"input      1,500 real orders, and {len(INPUT) - 1_500} of ours in 6 fraud bursts",
        f"decided    {len(INPUT):,}, each exactly once",
        f"{len(found)} suspected",
        "0 lost, 0 doubled",
        "loyalty joined late",
        "everlog parked redrive inventory",
        f"fraud      {fraud_words(INPUT, injected, found)}",
        f"forecast   error {forecast:.0%} · naive {naive:.0%}",
        "they add up",
    ):
        assert line in printed, printed
    assert "keys" not in printed


def test_alarms_are_judged_by_what_the_demo_alone_knows() -> None:
    injected = bursts(REAL, 6)
    judge, found = Judge(INPUT, injected), suspects(INPUT)
    assert judge.alarms(found, len(INPUT)).in_words() == fraud_words(INPUT, injected, found)
    ids = [fact.order.id for fact in INPUT]
    first = min(injected, key=lambda burst: ids.index(burst[0].order.id))
    begun = ids.index(first[0].order.id)
    real = next(fact.order.id for fact in REAL)
    assert judge.alarms(set(), begun).bursts == 0
    assert judge.alarms({real}, begun + 1).in_words() == f"0 of 1 bursts caught; 1 false alarm in {begun:,} orders"
    caught = judge.alarms({first[1].order.id}, len(INPUT))
    assert (caught.caught, list(caught.own), caught.false) == (1, [2], 0)


def test_the_readmes_say_what_the_whole_input_comes_to() -> None:
    real = read_orders()
    placed, injected = with_bursts(real, 20), bursts(real, 20)
    found = suspects(placed)
    forecast, naive = forecast_errors([fact for fact in placed if fact.order.id not in found])
    shop = (DEMO.parent / "README.md").read_text()
    assert fraud_words(placed, injected, found) in shop
    assert f"error {forecast:.0%} · naive {naive:.0%}" in shop
    assert f"input      8,547 real orders, and {len(placed) - len(real)} of ours in 20 fraud bursts" in shop
    words = " ".join((DEMO.parents[2] / "README.md").read_text().split())
    assert f"{forecast:.0%}".replace("%", " %") in words
    assert f"{naive:.0%}".replace("%", " %") in words
    caught = sum(any(fact.order.id in found for fact in burst) for burst in injected)
    fraudulent = {fact.order.id for burst in injected for fact in burst}
    assert f"of 20 bursts of fraud among the orders it catches {caught}, with {len(found - fraudulent)} false alarms" in words
