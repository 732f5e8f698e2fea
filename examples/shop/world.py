"""What the real data does not have, and is therefore ours: distances, opening stock and fraud bursts. All of it from one seed.

Nothing is stored: `dice` gives the same number for the same name in every process.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from hashlib import blake2b
from math import hypot
from random import Random
from typing import Final

import msgspec

from contracts import OrderPlaced

DEFAULT_SEED: Final = "2017"

_STORES: Final = """
    132 136 154 244 276 286 288 289 292 293 295 296 297 298 299 300 304 306 309 310 311 313 315 316 317 318 319 320 321 322
    323 324 327 329 330 333 334 335 337 338 339 340 341 343 345 346 352 354 355 356 358 359 360 361 362 363 364 365 366 367
    368 369 370 372 374 375 379 380 381 382 384 388 389 391 396 400 401 402 403 404 406 408 410 412 414 420 421 422 424 427
    429 432 433 436 438 439 441 442 443 445 446 447 448 450 486 498 514 542 563 569 627 634 644 673 706 707 715 721 732 752
    773 901 1039 1252 2538 2602 2697 2765 2815 2817 2873 2886 2888 2898 2903 2918 2942 2945 2946 2954 2957 2971 2998 3001
    3008 3060 3087 3146 3182 3217 3235 3251 3262 3267 3270 3274 3287 3297 3316 3383 3870 31401 31582 31642 31742 31762 31782
    31862 31863 32004
"""
STORES: Final = tuple(_STORES.split())
"""The stores of the real data."""

COUNTRY_KM: Final = 300
EMPTY_SHELVES: Final = 0.001
LOOSE: Final = frozenset({"FUEL", "MISCELLANEOUS"})
"""Departments whose goods are not sold by piece: their quantities go into the thousands."""

BURST_ORDERS: Final = (2, 8)
BURST_GAP_S: Final = (20.0, 240.0)


def seed() -> str:
    """Return the seed of this world: all processes of one run have the same in their environment."""
    return os.environ.get("SHOP_SEED", DEFAULT_SEED)


def dice(*names: str) -> float:
    """Return a number from 0 up to 1 that depends on the names and the seed alone."""
    digest = blake2b("/".join((seed(), *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


# ---- distances ----


def distance_km(one: str, other: str) -> int:
    """Return how far two branches are from each other."""
    here, there = _place(one), _place(other)
    return round(hypot(here[0] - there[0], here[1] - there[1]))


@functools.cache
def nearest(branch: str) -> Sequence[str]:
    """Return all branches, the nearest first: itself."""
    return sorted({*STORES, branch}, key=lambda other: (other != branch, distance_km(branch, other), other))


@functools.cache
def _place(branch: str) -> tuple[float, float]:
    return dice("east", branch) * COUNTRY_KM, dice("north", branch) * COUNTRY_KM


# ---- opening stock ----


def opening_stock(branch: str, sku: str, department: str) -> int:
    """Return how many a branch has of an article on the first morning: 6 to 25, none on a few shelves; loose goods in thousandths."""
    thrown = dice("stock", branch, sku)
    if thrown < EMPTY_SHELVES:
        return 0
    pieces = 6 + int(dice("pieces", branch, sku) * 20)
    return pieces * 10_000 if department in LOOSE else pieces


# ---- fraud bursts ----


def bursts(placed: Sequence[OrderPlaced], most: int) -> Sequence[Sequence[OrderPlaced]]:
    """Return some bursts of fraud: somebody orders other people's baskets in one customer's name, one soon after the other.

    An order of a burst looks like any other one. That it is one is known here and to the demo, and to nobody in the shop.
    """
    random = Random(f"bursts/{seed()}")
    taken = {fact.order.id for fact in placed}
    result: list[Sequence[OrderPlaced]] = []
    for start in random.sample(placed, min(most, len(placed))):
        victim, at, gap_s = random.choice(placed).customer_id, start.order.placed_at, random.uniform(*BURST_GAP_S)
        burst: list[OrderPlaced] = []
        for _ in range(random.randint(*BURST_ORDERS)):
            number = int(start.order.id)
            while str(number) in taken:
                number += random.randint(1, 99)
            taken.add(str(number))
            order = msgspec.structs.replace(random.choice(placed).order, id=str(number), placed_at=at)
            burst.append(OrderPlaced(victim, order))
            at += timedelta(seconds=round(gap_s * random.uniform(0.5, 1.5)))
        result.append(burst)
    return result


def with_bursts(placed: Sequence[OrderPlaced], most: int) -> list[OrderPlaced]:
    """Return the orders with some bursts among them, in the order of time."""
    added = [fact for burst in bursts(placed, most) for fact in burst]
    return sorted([*placed, *added], key=lambda fact: fact.order.placed_at)  # stable: what came first at one time stays first


# ---- play ----


def endless(placed: Sequence[OrderPlaced]) -> Iterator[OrderPlaced]:
    """Yield the orders, and then the same again and again, each time some whole weeks later and under other ids."""
    days = (placed[-1].order.placed_at.date() - placed[0].order.placed_at.date()).days
    weeks = timedelta(weeks=days // 7 + 1)
    yield from placed
    for again in itertools.count(1):
        for fact in placed:
            order = msgspec.structs.replace(
                fact.order, id=f"{fact.order.id}-{again}", placed_at=fact.order.placed_at + again * weeks
            )
            yield OrderPlaced(fact.customer_id, order)
