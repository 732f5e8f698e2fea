"""What the demo says at its end: each number comes from the log, from a store, or from the input."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from demo_checks import Evidence, Interrupted, balance
from demo_fraud import Judge
from demo_processes import EVERLOG, SHOP
from demo_run import Run, errors
from forecast import expected
from world import LOOSE, opening_stock

NOT_PLAYED = "not played"


def summary(run: Run, evidence: Evidence, after: Interrupted | None, judge: Judge) -> str:
    """Return all that happened, in a few lines."""
    history, inputs = evidence.history, evidence.input
    ours = sum(judge.is_fraud(fact.order.id) for fact in inputs)
    again = max(0, len(inputs) - len(run.input))
    alarms = judge.alarms({fact.order.id for fact in history.suspected}, len(inputs))
    return f"""
input      {len(inputs) - ours - again:,} real orders, and {ours} of ours in {alarms.bursts} fraud bursts{f"; and {again:,} of them played again, weeks later" if again else ""}
decided    {len(history.suspected) + len(history.answered):,}, each exactly once: {len(history.reserved):,} reserved, {len(history.refused):,} refused, {len(history.suspected):,} suspected
stock      {_stock(evidence)}
act 1      {_act_1(after)}
act 2      {NOT_PLAYED if run.flowed is None else f"one customer waited for an article; {run.flowed:,} orders of others were decided meanwhile"}
act 3      {NOT_PLAYED if run.joined is None else f"loyalty joined late and caught up: {run.joined}"}
{_by_hand(run.hands.done)}fraud      {alarms.in_words()}{" of the first round" if again else ""}
forecast   {_forecast(evidence)}
notify     {len(evidence.mails):,} mails, one for each decision

Ours, and made from a seed: opening stock, distances between branches, fraud bursts. All else is real.

Look at what it left behind:
  cd {shlex.quote(str(run.folder))}
  export PATH={shlex.quote(os.path.normpath(Path(EVERLOG).parent))}:$PATH PYTHONPATH={shlex.quote(str(SHOP))}
  everlog status
  everlog topics
  everlog tail --from beginning --limit 5 --topic shop.reservations
  everlog parked list inventory
  everlog verify"""


def _stock(evidence: Evidence) -> str:
    came, went = balance(evidence.history)
    pieces = [shelf for shelf in evidence.stock if evidence.departments[str(shelf[1])] not in LOOSE]
    opening = sum(opening_stock(str(branch), str(sku), evidence.departments[str(sku)]) for branch, sku in pieces)
    return f"""{len(pieces):,} shelves: {opening:,} pieces at the opening + {sum(came[shelf] for shelf in pieces):,} delivered
           - {sum(went[shelf] for shelf in pieces):,} reserved = {sum(evidence.stock[shelf] for shelf in pieces):,} left; conserved on each shelf, as on
           {len(evidence.stock) - len(pieces):,} shelves of goods that are not sold by piece"""


def _act_1(after: Interrupted | None) -> str:
    if after is None:
        return NOT_PLAYED
    return (
        f"inventory killed with {len(after.in_flight)} in flight, {len(after.run_again)} run again, "
        f"{len(after.lost)} lost, {len(after.doubled)} doubled"
    )


def _by_hand(done: Sequence[str]) -> str:
    return "".join(f"{'by hand' if number == 0 else '':11}{line}\n" for number, line in enumerate(done))


def _forecast(evidence: Evidence) -> str:
    """Say how wrong it was, of what, and what it expects of the branch with most orders."""
    score = evidence.score
    if not score.orders:
        return "no day of any branch has ended"
    demand = {str(key[0]): one for key, one in evidence.demand.items()}
    largest = max(demand, key=lambda branch: sum(demand[branch].orders))
    return f"""{errors(score)}: |expected - came| of {score.orders:,} orders, summed over {len(demand)} branches and
           each day that ended; the naive guess is the day before. Tomorrow branch {largest}: {expected(demand[largest].orders):.1f} orders"""
