"""What a replay or a rewind would do, and whether it may: looked at before anything is changed."""

from __future__ import annotations

from datetime import datetime
from itertools import chain
from typing import Literal, NamedTuple

from everlog.errors import CommandRefused
from everlog.log import Log
from everlog.position import BEGINNING, Offset, TopicPartition
from everlog.store import Again, Store, SubscriptionStatus, passed_by
from everlog.subscriptions.declaration import SubscriptionDeclaration

From = Literal["beginning"] | datetime
"""Where to begin: at the first event, or at the first one that the log stored at that time or later."""


class Repetition(NamedTuple):
    """A replay or a rewind, as planned."""

    again: Again
    stood: SubscriptionStatus
    """Where the subscription stands now."""
    events: int
    """How many will be handled again."""
    oldest_us: int | None
    """When the log stored the first of them, in microseconds since 1970 UTC; ``None`` where there are none."""
    gone: int
    """Events that retention has deleted, and that the past of the subscription held."""

    @property
    def grown(self) -> list[str]:
        """Types that the subscription passed by until now."""
        return [name for types in self.again.grown.values() for name in types]


async def plan_repetition(
    log: Log, store: Store, declaration: SubscriptionDeclaration, start: From, *, rebuilds: bool, keep_state: bool = False
) -> Repetition:
    """Return what would be done.

    Raises:
        CommandRefused: It cannot be, or it would build wrong state without a word; says what to do.
    """
    stood = next((one for one in (await store.status()).subscriptions if one.name == declaration.name), None)
    if stood is None or not stood.progress:
        raise CommandRefused(
            f"subscription {declaration.name!r} of app {declaration.app!r} has handled nothing yet: there is nothing to handle again"
        )
    rebuilds_state = rebuilds and bool(declaration.states) and not keep_state
    if rebuilds_state and start != "beginning":
        raise CommandRefused(
            f"subscription {declaration.name!r} has state ({', '.join(declaration.states)}), which a replay from {start:%Y-%m-%dT%H:%M:%S} on "
            f"would rebuild from a part of its events: replay from the beginning, or say --keep-state to go on from the state of today"
        )
    topics = {one.where.topic for one in stood.progress}
    grown = {topic: names for topic, names in passed_by(declaration.spec().types, stood.types).items() if topic in topics}
    if grown and not rebuilds:
        raise CommandRefused(
            f"subscription {declaration.name!r} handles {', '.join(sorted(chain(*grown.values())))} now, whose past it has passed by: begin with "
            f"`everlog run --new-types now`, or with a replay, which handles that too"
        )
    after: dict[TopicPartition, Offset] = {}
    gone, count, oldest_us = 0, 0, None
    kept = {topic.name: topic.keep_newest for topic in declaration.topics}
    for topic in sorted(topics):
        first = (await log.first(topic)).offsets
        begins = first if start == "beginning" else (await log.position_at(topic, start)).offsets
        here = {one.where: min(begins[one.where], one.through) for one in stood.progress if one.where.topic == topic}
        after.update(here)
        if start == "beginning" and not kept.get(topic, False):
            gone += sum(offset - BEGINNING for offset in first.values())
        left = await log.backlog(topic, {where.partition: offset for where, offset in here.items()})
        ahead = {one.where.partition: one.through for one in stood.progress if one.where.topic == topic}
        count += left.count - (await log.backlog(topic, ahead)).count
        oldest_us = min([time for time in (oldest_us, left.oldest_us) if time is not None], default=None)
    if rebuilds_state and gone:
        raise CommandRefused(
            f"retention has deleted {gone:,} events of the past of subscription {declaration.name!r}: its state would be rebuilt without them. "
            f"Say --keep-state to handle what is left over the state of today"
        )
    again = Again(declaration.name, after, rebuilds=rebuilds, keep_state=keep_state, grown=grown)
    return Repetition(again, stood, count, oldest_us if count else None, gone)


def events_left(repetition: Repetition, now: SubscriptionStatus) -> int:
    """Return how many of the planned events are not finished: neither handled nor held."""
    left = 0
    progress = {one.where: one for one in now.progress}
    for one in repetition.stood.progress:
        at = progress.get(one.where)
        if at is not None:
            left += max(0, one.through - at.through) + sum(offset <= one.through for offset in at.unfinished)
    return left
