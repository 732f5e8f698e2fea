"""Whether the numbers add up: pure functions from evidence to a list of faults, empty where all is well.

What is expected is computed from the input file and the seed, by other ways than the services go: sums over facts instead of state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

import msgspec

import forecast
import fraud
from contracts import ForecastScore, OrderPlaced
from demo_history import History, Key
from loyalty import CENTS_PER_POINT
from notify import words
from supplier import CASE
from world import opening_stock

SHOWN: Final = 5
TOLERANCE: Final = 1e-9
"""Of sums of floats that were added in another order."""


@dataclass(frozen=True)
class Evidence:
    """What there is to look at after a run."""

    input: Sequence[OrderPlaced]
    departments: Mapping[str, str]
    """sku → department, from the file."""
    history: History
    stock: Mapping[Key, int]
    points: Mapping[Key, int]
    demand: Mapping[Key, forecast.Demand]
    score: ForecastScore
    mails: Sequence[Mapping[str, str]]


def check_all(evidence: Evidence) -> list[str]:
    """Return everything that does not add up."""
    return [
        *check_placed(evidence.input, evidence.history),
        *check_decided(evidence.input, evidence.history),
        *check_order(evidence.history),
        *check_suspects(evidence.input, evidence.history),
        *check_deliveries(evidence.history),
        *check_stock(evidence.history, evidence.stock, evidence.departments),
        *check_points(evidence.history, evidence.points),
        *check_forecast(evidence.history, evidence.demand, evidence.score),
        *check_mails(evidence.history, evidence.mails),
    ]


# ---- orders ----


def check_placed(placed: Sequence[OrderPlaced], history: History) -> list[str]:
    """Each order of the input is in the log once, as it was."""
    expected = {fact.order.id: fact for fact in placed}
    faults = _once("placed", expected, [fact.order.id for fact in history.placed])
    changed = [fact.order.id for fact in history.placed if expected.get(fact.order.id, fact) != fact]
    return faults + _fault("in the log with other contents than in the input", changed)


def check_decided(placed: Sequence[OrderPlaced], history: History) -> list[str]:
    """Each order is exactly one of suspected, refused, reserved; each that was cleared was routed once; nothing in it was changed."""
    expected = {fact.order.id: fact for fact in placed}
    suspected = [fact.order.id for fact in history.suspected]
    answered = [fact.order.id for fact in history.answered]
    cleared = [fact.order.id for fact in history.cleared]
    faults = _once("decided", expected, suspected + answered)
    faults += _once("screened", expected, suspected + cleared)
    faults += _once("routed", cleared, [fact.order.id for fact in history.routed])
    facts = (*history.suspected, *history.answered)
    changed = [
        fact.order.id
        for fact in facts
        if fact.order.id in expected and expected[fact.order.id] != OrderPlaced(fact.customer_id, fact.order)
    ]
    return faults + _fault("decided with other contents than in the input", changed)


def check_order(history: History) -> list[str]:
    """Each customer's orders were answered in the order in which they were placed."""
    cleared = {fact.order.id for fact in history.cleared}
    placed: dict[str, list[str]] = {}
    answered: dict[str, list[str]] = {}
    for fact in history.placed:
        if fact.order.id in cleared:
            placed.setdefault(fact.customer_id, []).append(fact.order.id)
    for answer in history.answered:
        answered.setdefault(answer.customer_id, []).append(answer.order.id)
    return _fault(
        "a customer whose orders were answered in another order",
        [who for who, ids in placed.items() if answered.get(who, []) != ids],
    )


def expected_suspects(placed: Iterable[OrderPlaced]) -> set[str]:
    """Return the ids that fraud has to suspect: what it learned depends on the customer's own orders alone, and these are in order."""
    known: dict[str, fraud.Habits] = {}
    suspects = set[str]()
    for fact in placed:
        habits = known.get(fact.customer_id, fraud.Habits())
        is_suspect = fraud.suspicion(habits, fact.order) is not None
        known[fact.customer_id] = fraud.learn(habits, fact.order, is_suspect=is_suspect)
        if is_suspect:
            suspects.add(fact.order.id)
    return suspects


def check_suspects(placed: Sequence[OrderPlaced], history: History) -> list[str]:
    """Fraud suspects what the same learner suspects when it reads the input from first to last."""
    wrong = {fact.order.id for fact in history.suspected} ^ expected_suspects(placed)
    return _fault("suspected or cleared where the input says otherwise", wrong)


# ---- goods ----


def check_deliveries(history: History) -> list[str]:
    """Each refused line was delivered once."""
    due = Counter((fact.branch, line.sku, max(CASE, 2 * line.quantity)) for fact in history.refused for line in fact.missing)
    came = Counter((fact.branch, fact.sku, fact.quantity) for fact in history.delivered)
    return _fault("delivered more or less often than refused", [*(due - came), *(came - due)])


def balance(history: History) -> tuple[Counter[Key], Counter[Key]]:
    """Return what came to each shelf and what was reserved from it."""
    came: Counter[Key] = Counter()
    went: Counter[Key] = Counter()
    for delivered in history.delivered:
        came[delivered.branch, delivered.sku] += delivered.quantity
    for reserved in history.reserved:
        for line in reserved.order.lines:
            went[reserved.branch, line.sku] += line.quantity
    return came, went


def check_stock(history: History, stock: Mapping[Key, int], departments: Mapping[str, str]) -> list[str]:
    """On each shelf: opening + delivered - reserved = what the store says is left, and never below 0."""
    came, went = balance(history)
    wrong = list[Key]()
    for shelf in {*came, *went, *stock}:
        branch, sku = str(shelf[0]), str(shelf[1])
        opening = opening_stock(branch, sku, departments[sku])
        left = opening + came[shelf] - went[shelf]
        if left < 0 or left != stock.get(shelf, opening):
            wrong.append(shelf)
    return _fault("a shelf on which opening + delivered - reserved is not what is left", wrong)


# ---- what others made of it ----


def check_points(history: History, points: Mapping[Key, int]) -> list[str]:
    """Each customer has the points of all reserved orders, those before loyalty joined included."""
    due: Counter[Key] = Counter()
    for fact in history.reserved:
        due[fact.customer_id,] += sum(line.total_cents for line in fact.order.lines) // CENTS_PER_POINT
    return _fault("a customer with other points than earned", [who for who in {*due, *points} if due[who] != points.get(who, 0)])


def check_forecast(history: History, demand: Mapping[Key, forecast.Demand], score: ForecastScore) -> list[str]:
    """What was asked for on each day is what was answered, and both errors are what comes out day by day from that."""
    asked: dict[str, Counter[date]] = {}
    for fact in history.answered:
        asked.setdefault(fact.order.store_id, Counter())[fact.order.placed_at.date()] += 1
    known = {str(branch): _days(one) for (branch,), one in demand.items()}
    wrong = [branch for branch in {*asked, *known} if asked.get(branch) != known.get(branch)]
    due = expected_score(asked)
    found = (
        ("orders", score.orders, due.orders),
        ("missed", score.missed, due.missed),
        ("naive", score.missed_naively, due.missed_naively),
    )
    apart = [f"{name} {one} instead of {other}" for name, one, other in found if abs(one - other) > TOLERANCE * max(1.0, other)]
    return _fault("a branch with other orders on a day than were answered", wrong) + _fault("a wrong forecast error", apart)


def _days(demand: forecast.Demand) -> Counter[date]:
    return Counter({demand.first + timedelta(place): orders for place, orders in enumerate(demand.orders) if orders})


def expected_score(asked: Mapping[str, Counter[date]]) -> ForecastScore:
    """Return both errors, from the orders of each branch and day: a mean in which each day counts `KEEP` of the next, and the day before."""
    orders, missed, naively = 0, 0.0, 0
    for days in asked.values():
        mean, weight = 0.0, 0.0
        for number in range(min(days).toordinal(), max(days).toordinal()):
            came = days[date.fromordinal(number)]
            if weight:
                orders += came
                missed += abs(came - mean)
                naively += abs(came - days[date.fromordinal(number - 1)])
            weight = weight * forecast.KEEP + 1
            mean += (came - mean) / weight
    return ForecastScore(orders, missed, float(naively))


def check_mails(history: History, mails: Sequence[Mapping[str, str]]) -> list[str]:
    """Each decision was told to its customer once."""
    due = Counter((fact.customer_id, words(fact)) for fact in (*history.suspected, *history.answered))
    sent = Counter((mail["to"], mail["text"]) for mail in mails)
    return _fault("told to a customer more or less often than once", [*(due - sent), *(sent - due)])


# ---- the kill ----


class Interrupted(msgspec.Struct, frozen=True):
    """What became of the orders that a kill interrupted: noted at the handler's start, and no committed effect."""

    in_flight: Collection[str]
    run_again: Collection[str]
    lost: Collection[str]
    doubled: Collection[str]
    needless: Collection[str]
    """Run again although they were committed."""

    def faults(self) -> list[str]:
        """Return what is wrong with it."""
        return [
            *_fault("lost by the kill", self.lost),
            *_fault("doubled by the kill", self.doubled),
            *_fault("in flight at the kill, and not run again", set(self.in_flight) - set(self.run_again)),
            *_fault("run again after the kill although it was committed", self.needless),
            *([] if self.in_flight else ["nothing was in flight when inventory was killed, so that the kill shows nothing"]),
        ]


def interrupted(noted: Sequence[str], committed: Collection[str], noted_after: Sequence[str], history: History) -> Interrupted:
    """Work out what a kill did.

    Args:
        noted: The side file at the time of the kill.
        committed: Orders that had an answer then: in the log, or in the outbox of the killed service's store.
        noted_after: What was noted from then to the end.
        history: The facts at the end.
    """
    in_flight = sorted(set(noted) - set(committed))
    again = set(noted_after)
    answers = Counter(fact.order.id for fact in history.answered)
    return Interrupted(
        in_flight,
        [order for order in in_flight if order in again],
        [order for order in in_flight if answers[order] == 0],
        [order for order in {*noted, *in_flight} if answers[order] > 1],
        sorted(set(noted) & set(committed) & again),
    )


def _once(what: str, expected: Iterable[str], found: Sequence[str]) -> list[str]:
    counts = Counter(found)
    due = set(expected)
    return [
        *_fault(f"never {what}", due - counts.keys()),
        *_fault(f"{what} more than once", [order for order, count in counts.items() if count > 1]),
        *_fault(f"{what}, and not in the input", counts.keys() - due),
    ]


def _fault(what: str, cases: Collection[Hashable]) -> list[str]:
    if not cases:
        return []
    some = sorted(map(str, cases))[:SHOWN]
    return [f"{len(cases):,} × {what}: {', '.join(some)}{' …' if len(cases) > SHOWN else ''}"]
