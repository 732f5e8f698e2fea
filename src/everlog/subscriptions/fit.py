"""Whether a log and a store tell one history: what shows that one of them was put back from a backup, or is another one.

    what it is             what shows it
    an old log             progress beyond its end · another record at a landmark, or none · a number that it had acknowledged and does not know
    an old store           a number of its relay that it has not given · one of a later incarnation · progress reported beyond its own
    another store          the app has reported from another one since

A landmark is the record up to which a partition was handled, or the last one that the app's handlers had published there when a restore looked, with
the time at which the log stored it. A log that was put back and went on has
another record there, stored later: offsets alone would fit again as soon as others have published enough. What both have of the history ends before
the first record that is younger than a landmark that is gone, in every partition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

from everlog.clock import to_datetime
from everlog.log import Log, TopicSpec
from everlog.position import Offset, TopicPartition
from everlog.store import Landmark, Store, StoreStatus, relay_producer
from everlog.subscriptions.report import ProgressReported, read_reports

_LATER_INCARNATIONS: Final = 8
"""So many are looked for in the log: each restore of a store begins one, and one that sent nothing is not in the log."""


class Beyond(NamedTuple):
    """Progress that lies beyond what the log still has of the history that it belongs to."""

    subscription: str
    where: TopicPartition
    through: Offset
    ends: Offset
    """The last offset that log and store have in common."""


class Numbers(NamedTuple):
    """The highest number of the relay in one topic partition, as each of them knows it; -1 for none."""

    where: TopicPartition
    store: int
    log: int


class Reported(NamedTuple):
    """Progress that the store has reported to the log, beyond what it holds now."""

    subscription: str
    where: TopicPartition
    reported: Offset
    through: Offset


@dataclass(frozen=True, slots=True)
class Fit:
    """How far a log and a store tell one history.

    Attributes:
        status: What the store holds.
        log: The log that the progress belongs to, where it is another one.
        beyond: Progress that the log has not got, or has other records for.
        lost: Numbers that the log had acknowledged and does not hold.
        unknown: Numbers in the log that the store has not given.
        later: The highest incarnation of the store in the log, where it is above its own.
        gone: Landmarks that the log does not hold.
        reported: Progress that the store has had before.
        replaced: Another store, from which the app has reported since it did from this one.
    """

    status: StoreStatus
    log: UUID | None
    beyond: Sequence[Beyond]
    lost: Sequence[Numbers]
    unknown: Sequence[Numbers]
    later: int | None
    gone: Sequence[Landmark]
    reported: Sequence[Reported]
    replaced: UUID | None

    @property
    def is_new(self) -> bool:
        """The store has no progress yet."""
        return not any(subscription.progress for subscription in self.status.subscriptions)

    @property
    def log_is_old(self) -> bool:
        """The log lacks what the store has handled or sent."""
        return bool(self.beyond or self.lost or self.gone)

    @property
    def store_is_old(self) -> bool:
        """The store lacks what it has sent or handled: its next events would be taken for old ones, or stand in the log twice."""
        return bool(self.unknown or self.reported) or self.later is not None


async def compare(app: str, log: Log, store: Store) -> Fit:
    """Compare a log with the store of an app. Others may work on both: what they add meanwhile is no difference."""
    # What each of them may have got from the other is read before the other one.
    reports = {report.subscription: report for report, _ in (await read_reports(log)).values() if report.app == app}
    sent = {name: await _last_sequences(log, store, name) for name in _incarnations(store)}
    landmarks, acknowledged, status = await store.landmarks(), await store.acknowledged(), await store.status()
    issued = await store.issued()
    heads = await _heads(log)
    gone = await _gone(log, landmarks, heads)
    ends = await _ends(log, gone, heads)
    in_log = await _last_sequences(log, store, store.incarnation)
    later = [number for number, found in sent.items() if found and number > store.incarnation]
    names = {subscription.name for subscription in status.subscriptions}
    others = {report.store for name, report in reports.items() if name in names and not report.is_retired} - {store.identity}
    return Fit(
        status=status,
        log=status.log if status.log not in (None, log.identity) else None,
        beyond=[
            Beyond(subscription.name, one.where, one.through, ends.get(one.where, Offset(-1)))
            for subscription in status.subscriptions
            for one in subscription.progress
            if one.through > ends.get(one.where, Offset(-1))
        ],
        lost=[
            Numbers(where, number, in_log.get(where, -1))
            for where, number in sorted(acknowledged.items())
            if number > in_log.get(where, -1)
        ],
        unknown=[
            Numbers(where, issued.get(where, -1), number)
            for where, number in sorted(sent[store.incarnation].items())
            if number > issued.get(where, -1)
        ],
        later=max(later, default=None),
        gone=gone,
        reported=_reported(store, status, reports),
        replaced=min(others, default=None),
    )


def _incarnations(store: Store) -> range:
    return range(store.incarnation, store.incarnation + _LATER_INCARNATIONS + 1)


async def _last_sequences(log: Log, store: Store, incarnation: int) -> Mapping[TopicPartition, int]:
    """Return the highest number in the log of one incarnation of the store's relay, by topic partition."""
    name = relay_producer(store.identity, incarnation)
    return {
        TopicPartition(topic.name, partition): number
        for topic in await log.topics()
        for partition, number in (await log.last_sequence(name, topic.name)).items()
    }


async def _heads(log: Log) -> Mapping[TopicPartition, Offset]:
    heads: dict[TopicPartition, Offset] = {}
    for topic in await log.topics():
        heads.update((await log.head(topic.name)).offsets)
    return heads


def handled_by(status: StoreStatus) -> Mapping[TopicPartition, Offset]:
    """Return how far any subscription has come in each partition."""
    handled: dict[TopicPartition, Offset] = {}
    for subscription in status.subscriptions:
        for one in subscription.progress:
            handled[one.where] = max(handled.get(one.where, one.through), one.through)
    return handled


async def _gone(log: Log, landmarks: Sequence[Landmark], heads: Mapping[TopicPartition, Offset]) -> list[Landmark]:
    """Return the landmarks that the log does not hold."""
    topics = {topic.name: topic for topic in await log.topics()}
    return [one for one in landmarks if not await _holds(log, topics.get(one.where.topic), one, heads)]


async def _ends(log: Log, gone: Sequence[Landmark], heads: Mapping[TopicPartition, Offset]) -> Mapping[TopicPartition, Offset]:
    """Return, for each partition, the last offset of the history that the store knows."""
    if not gone:
        return heads
    topics = {topic.name for topic in await log.topics()}
    ends = dict(heads)
    if log.features.log_time:
        # Everything that is left of that history was stored by then, and everything of another one later.
        moment = to_datetime(min(one.logged_at_us for one in gone) + 1)
        for name in topics:
            for where, offset in (await log.position_at(name, moment)).offsets.items():
                ends[where] = min(ends[where], offset)
    for one in gone:  # whatever the clocks say
        ends[one.where] = min(ends.get(one.where, Offset(-1)), Offset(one.offset - 1))
    return ends


async def _holds(log: Log, topic: TopicSpec | None, landmark: Landmark, heads: Mapping[TopicPartition, Offset]) -> bool:
    """Tell whether the log holds a landmark; what retention has deleted counts as held."""
    where, offset, logged_at_us = landmark
    if topic is None or offset > heads.get(where, Offset(-1)):
        return False
    if topic.keep_newest or offset <= (await log.first(where.topic)).offsets[where]:
        return True  # not there any more, and nobody can say what it was
    return (await log.backlog(where.topic, {where.partition: Offset(offset - 1)})).oldest_us == logged_at_us


def _reported(store: Store, status: StoreStatus, reports: Mapping[str, ProgressReported]) -> list[Reported]:
    found: list[Reported] = []
    for subscription in status.subscriptions:
        report = reports.get(subscription.name)
        if report is None or report.is_retired or (report.store, report.generation) != (store.identity, subscription.generation):
            continue
        for one in subscription.progress:
            reported = report.topics.get(one.where.topic, {}).get(str(one.where.partition))
            if reported is not None and reported.through > one.through:
                found.append(Reported(subscription.name, one.where, Offset(reported.through), one.through))
    return found


async def landmarks_of(
    log: Log, handled: Mapping[TopicPartition, Offset], known: Mapping[TopicPartition, Landmark]
) -> list[Landmark]:
    """Return the newest record handled of each partition where that is another one than is known. Costs a look at an index for each."""
    kept_whole = {topic.name for topic in await log.topics() if not topic.keep_newest}
    found: list[Landmark] = []
    for where, offset in handled.items():
        if where.topic not in kept_whole or offset < 0 or (where in known and known[where].offset == offset):
            continue
        logged_at_us = (await log.backlog(where.topic, {where.partition: Offset(offset - 1)})).oldest_us
        if logged_at_us is not None and offset > (await log.first(where.topic)).offsets[where]:  # asked last: it only grows
            found.append(Landmark(where, offset, logged_at_us))
    return found
