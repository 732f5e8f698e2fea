"""Which slots of a subscription this process works on: evenly shared with its other members, taken over from dead ones."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, NamedTuple

from everlog.errors import LeaseLost
from everlog.store import Lease, Slot, Store, Survey
from everlog.subscriptions.engine import Engine

_logger: Final = logging.getLogger("everlog")


class Move(NamedTuple):
    """What a member should do to get to an even share."""

    take: Sequence[int]
    give: Sequence[int]


def balance(survey: Survey, *, me: int, count: int, owned: Sequence[int]) -> Move:
    """Return the slots that a member should take or give back.

    Shares differ by at most one: the members with the lowest numbers have one more. Nobody gives what nobody would take.

    Args:
        survey: Who is there, and who owns what.
        me: The member.
        count: How many slots there are: 0 to `count` - 1.
        owned: What the member has.
    """
    members = sorted({*survey.members, me})
    rank = members.index(me)
    share = count // len(members) + (rank < count % len(members))
    free = [number for number in range(count) if survey.owners.get(number) is None and number not in owned]
    take = free[: max(0, share - len(owned))]
    surplus = len(owned) - share
    return Move(take, sorted(owned)[-surplus:] if surplus > 0 else [])


class Slots:
    """Takes and gives back the slots of one engine."""

    def __init__(self, engine: Engine, store: Store, member: int) -> None:
        self._engine = engine
        self._store = store
        self._member = member

    async def settle(self) -> bool:
        """Take what is free up to an even share, give back what is beyond it; tells whether anything changed."""
        name = self._engine.declaration.name
        survey = await self._store.survey(name)
        for number, work in list(self._engine.works.items()):
            if survey.owners.get(number) != self._member and survey.owners.get(number) is not None:
                self._engine.lose_slot(work)
        move = balance(survey, me=self._member, count=self._engine.declaration.slots, owned=list(self._engine.works))
        for number in move.give:
            surplus = self._engine.works.get(number)
            if surplus is not None:
                await self._engine.close_slot(surplus)
                await self._store.release(surplus.lease)
        has_changed = bool(move.give)
        for number in move.take:
            has_changed = await self._take(Slot(name, number)) or has_changed
        return has_changed

    async def _take(self, slot: Slot) -> bool:
        lease: Lease | None = await self._store.acquire(slot)
        if lease is None:
            return False
        try:
            state = await self._store.load(lease)
        except LeaseLost:
            return False
        self._engine.open_slot(lease, state)
        _logger.info("%s: works on slot %d", slot.subscription, slot.number)
        return True
