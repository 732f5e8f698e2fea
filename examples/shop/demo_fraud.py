"""What the demo alone knows: which orders are fraud. So it can say how good the alarms are; the shop never learns it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median

from contracts import OrderPlaced


@dataclass(frozen=True)
class Alarms:
    """How good the alarms are.

    Attributes:
        bursts: Bursts that have begun.
        caught: Those with an alarm.
        own: For each caught burst: which of its orders raised the first alarm, from 1 on.
        shop: For each caught burst: how many orders the whole shop had from the burst's first one up to the alarm, both included.
        real: Orders that are in no burst.
        false: Those of them that raised an alarm.
    """

    bursts: int
    caught: int
    own: Sequence[int]
    shop: Sequence[int]
    real: int
    false: int

    def shortly(self) -> str:
        """Return it in less than 72 columns."""
        at = f" at order {median(self.own):.0f} ({median(self.shop):,.0f} of all)" if self.caught else ""
        return f"{self.caught} of {self.bursts} bursts caught{at}, {self.false} false in {self.real:,} orders"

    def in_words(self) -> str:
        """Return all of it in a line."""
        after = f", after {median(self.own):.0f} of their orders, {median(self.shop):,.0f} of the shop's" if self.caught else ""
        return f"{self.caught} of {self.bursts} bursts caught{after}; {self.false} false alarm{'' if self.false == 1 else 's'} in {self.real:,} orders"


class Judge:
    """Compares alarms with what is known of an input that is played in the order given."""

    def __init__(self, orders: Sequence[OrderPlaced], bursts: Sequence[Sequence[OrderPlaced]]) -> None:
        self._place = {fact.order.id: place for place, fact in enumerate(orders)}
        self._bursts = [[fact.order.id for fact in burst] for burst in bursts]
        self._fraud = {order for burst in self._bursts for order in burst}

    def is_fraud(self, order: str) -> bool:
        return order in self._fraud

    def alarms(self, suspected: Collection[str], placed: int) -> Alarms:
        """Judge some alarms.

        Args:
            suspected: The ids of the suspected orders; those that are not in the input do not count.
            placed: How many of the orders have been placed.
        """
        begun = [burst for burst in self._bursts if self._place[burst[0]] < placed]
        own: list[int] = []
        shop: list[int] = []
        for burst in begun:
            first = next((number for number, order in enumerate(burst) if order in suspected), None)
            if first is not None:
                own.append(first + 1)
                shop.append(self._place[burst[first]] - self._place[burst[0]] + 1)
        real = sum(place < placed for order, place in self._place.items() if order not in self._fraud)
        false = sum(order in self._place and order not in self._fraud for order in suspected)
        return Alarms(len(begun), len(own), own, shop, real, false)
