"""Which slots of a subscription this process works on: evenly shared with its other members, taken over from dead ones."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from everlog.clock import Clock
from everlog.errors import LeaseLost
from everlog.log import Log
from everlog.position import Offset, TopicPartition
from everlog.store import Lease, Progress, Slot, SlotState, Store, Survey
from everlog.subscriptions.engine import Engine
from everlog.subscriptions.gap import pass_or_stop
from everlog.subscriptions.progress import PartitionProgress

FULL_PAUSE_S: Final = 10.0
"""How long a slot waits that stopped because there is no room to hold more."""

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
        me: The member; where it is not among those that may work, it gives back what it has.
        count: How many slots there are: 0 to `count` - 1.
        owned: What the member has.
    """
    if me in survey.members:
        rank = survey.members.index(me)
        share = count // len(survey.members) + (rank < count % len(survey.members))
    else:
        share = 0
    free = [number for number in range(count) if survey.owners.get(number) is None and number not in owned]
    take = free[: max(0, share - len(owned))]
    surplus = len(owned) - share
    return Move(take, sorted(owned)[-surplus:] if surplus > 0 else [])


class Slots:
    """Takes and gives back the slots of one engine."""

    def __init__(self, engine: Engine, log: Log, store: Store, member: int, *, clock: Clock) -> None:
        self._clock = clock
        self._engine = engine
        self._log = log
        self._store = store
        self._member = member

    async def settle(self) -> bool:
        """Take what is free up to an even share, give back what is beyond it; tells whether anything changed."""
        if self._engine.is_stopping:  # what it gave up is for others
            return False
        name = self._engine.declaration.name
        for work in list(self._engine.works.values()):  # perhaps there is room again
            if work.full_since_s is not None and self._clock.monotonic_s() - work.full_since_s >= FULL_PAUSE_S:
                await self._engine.close_slot(work)
                await self._store.release(work.lease)
        survey = await self._store.survey(name)
        for number, work in list(self._engine.works.items()):
            if survey.owners.get(number) != self._member:  # another's, or nobody's since a replay began
                self._engine.lose_slot(work)
        # What the store gives to this member and nobody here works on was lost on the way: else it would stand still for as long as we live.
        lost = [number for number, owner in survey.owners.items() if owner == self._member and number not in self._engine.works]
        move = balance(survey, me=self._member, count=self._engine.declaration.slots, owned=list(self._engine.works))
        for number in move.give:
            surplus = self._engine.works.get(number)
            if surplus is not None:
                await self._engine.close_slot(surplus)
                await self._store.release(surplus.lease)
        wanted = [number for number in sorted({*move.take, *lost}) if self._engine.may_take(number)]
        taken = [number for number in wanted if await self._take(Slot(name, number))]
        if taken:
            _logger.info("%s: works on slot%s %s", name, "" if len(taken) == 1 else "s", ", ".join(map(str, taken)))
        return bool(move.give or taken)

    async def _take(self, slot: Slot) -> bool:
        lease: Lease | None = await self._store.acquire(slot)
        if lease is None:
            return False
        try:
            state = await self._store.load(lease)
        except LeaseLost:
            return False
        stored, state = state, await self._without_gap(state)
        heads: dict[TopicPartition, Offset] | None = None
        if lease.is_unclean or state.attempt is not None:
            heads = {}
            for topic in self._engine.declaration.topics:
                heads.update((await self._log.head(topic.name)).offsets)
        self._engine.open_slot(lease, state, heads)
        if state.progress != stored.progress:
            self._engine.touch(slot)
        return True

    async def _without_gap(self, state: SlotState) -> SlotState:
        """Return where to go on, if retention has deleted what was not handled yet.

        Raises:
            HistoryGone: It has, and the delivery says to stop.
        """
        kept = {topic.name: topic.keep_newest for topic in self._engine.declaration.topics}
        progress: list[Progress] = []
        for one in state.progress:
            partition, where = PartitionProgress(one), one.where
            first = (await self._log.first(where.topic)).offsets[where]
            if partition.start >= first:
                progress.append(one)
                continue
            if not kept[where.topic] and partition.is_lost(partition.start, first):
                pass_or_stop(self._engine.declaration, where, partition.start, first)
            unfinished = [offset for offset in one.unfinished if offset > first]
            progress.append(Progress(where, max(one.through, first), unfinished, one.dedupe))
        return msgspec.structs.replace(state, progress=progress)
