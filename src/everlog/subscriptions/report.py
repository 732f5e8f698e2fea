"""How far each subscription is, said in the log itself: `status`, the console and the demo read nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

import msgspec

from everlog.codec import Chunk
from everlog.contracts.contract import contract_of
from everlog.contracts.envelope import Origin, address
from everlog.contracts.event import Event
from everlog.contracts.topic import Topic
from everlog.log import Backlog, Log
from everlog.position import Offset
from everlog.store import StoreStatus, SubscriptionStatus

progress_topic: Final = Topic("everlog.progress", key="name", partitions=1, keep_s=3_600.0, keep_newest=True)


class PartitionReport(msgspec.Struct, frozen=True):
    """How far one partition is handled."""

    through: int
    """Everything up to this offset is finished, but for `unfinished` records."""
    unfinished: int
    oldest: int | None = None
    """The offset of the oldest of these; ``None`` where there is none."""


@progress_topic.event("everlog.progress/1")
class ProgressReported(Event):
    """Where a subscription stands. The newest one of a name counts."""

    name: str
    """App and subscription: ``inventory/inventory``."""
    app: str
    subscription: str
    store: UUID
    generation: int
    topics: dict[str, dict[str, PartitionReport]]
    """Topic → partition → progress."""
    blocked_keys: int
    parked_keys: int
    held_records: int
    outbox: int
    outbox_parked: int
    is_retired: bool = False
    """The subscription was forgotten: it has no lag any more."""
    held_bytes: int = 0
    paused: str | None = None
    """Why it is paused, and by how many processes; ``None``: it is not. What its handlers need does not answer."""


class Lag(msgspec.Struct, frozen=True):
    """How far behind a subscription is."""

    report: ProgressReported
    reported_us: int
    """When the log stored the report, in microseconds since 1970 UTC."""
    count: int
    """Records that are not finished, those held included."""
    age_s: float | None
    """Age of the oldest record that is not finished, held ones aside, in seconds by the log's time; ``None`` where there is none."""


def reports_of(store: UUID, status: StoreStatus) -> list[ProgressReported]:
    """Return what a store's status says of each subscription."""
    reports: list[ProgressReported] = []
    for subscription in status.subscriptions:
        topics: dict[str, dict[str, PartitionReport]] = {}
        for progress in subscription.progress:
            report = PartitionReport(progress.through, len(progress.unfinished), min(progress.unfinished, default=None))
            topics.setdefault(progress.where.topic, {})[str(progress.where.partition)] = report
        reports.append(
            ProgressReported(
                f"{status.app}/{subscription.name}",
                status.app,
                subscription.name,
                store,
                subscription.generation,
                topics,
                subscription.blocked_keys,
                subscription.parked_keys,
                subscription.held_records,
                status.outbox,
                status.outbox_parked,
                held_bytes=subscription.held_bytes,
                paused=paused_by(subscription.paused),
            )
        )
    return reports


def paused_by(reasons: Sequence[str]) -> str | None:
    """Return why a subscription is paused, as the first of its processes says it, and how many say so; ``None`` where none does."""
    if not reasons:
        return None
    return f"{reasons[0]} ({len(reasons)} process{'' if len(reasons) == 1 else 'es'})"


async def backlog_of(log: Log, subscription: SubscriptionStatus) -> Backlog:
    """Return what waits for a subscription, as its store knows it: what it has not looked at, and the records in flight. Not what it holds."""
    by_topic: dict[str, dict[int, Offset]] = {}
    in_hand: dict[str, dict[int, Offset]] = {}
    for progress in subscription.progress:
        topic, partition = progress.where
        by_topic.setdefault(topic, {})[partition] = progress.through
        if progress.unfinished:
            in_hand.setdefault(topic, {})[partition] = Offset(min(progress.unfinished) - 1)
    backlogs = [await log.backlog(topic, offsets) for topic, offsets in by_topic.items()]
    unfinished = sum([len(progress.unfinished) for progress in subscription.progress])
    older = [await log.backlog(topic, offsets) for topic, offsets in in_hand.items()]
    oldest = [backlog.oldest_us for backlog in (*backlogs, *older) if backlog.oldest_us is not None]
    return Backlog(unfinished + sum([backlog.count for backlog in backlogs]), min(oldest, default=None))


async def publish_reports(log: Log, app: str, reports: list[ProgressReported], time_us: int) -> None:
    """Append reports to the log. A report that is lost is followed by the next one, so no number protects it."""
    origin = Origin(app, time_us, None, _only_partition)
    for target in address(reports, origin):
        await log.append(target.topic.name, target.records)


def _only_partition(topic: Topic) -> int:
    return topic.partitions - 1


async def publish_retired(log: Log, app: str, subscription: str, time_us: int) -> None:
    """Say in the log that a subscription was forgotten, if it ever reported."""
    known = (await read_reports(log)).get(f"{app}/{subscription}")
    if known is not None and not known[0].is_retired:
        report, _ = known
        last = msgspec.structs.replace(
            report, is_retired=True, blocked_keys=0, parked_keys=0, held_records=0, held_bytes=0, paused=None
        )
        await publish_reports(log, app, [last], time_us)


async def read_reports(log: Log) -> Mapping[str, tuple[ProgressReported, int]]:
    """Return the newest report of each name, with the time at which the log stored it; empty where nothing was reported yet."""
    newest: dict[str, tuple[ProgressReported, int]] = {}
    if all(spec.name != progress_topic.name for spec in await log.topics()):
        return newest
    first, head = await log.first(progress_topic.name), await log.head(progress_topic.name)
    reader = log.reader(first.offsets)
    left = {where: offset for where, offset in head.offsets.items() if offset > first.offsets[where]}
    try:
        while left:
            batch = await reader.next()
            for chunk in batch.chunks:
                _read_chunk(chunk, newest)
            left = {where: offset for where, offset in left.items() if batch.through.get(where, Offset(-1)) < offset}
    finally:
        reader.close()
    return newest


def _read_chunk(chunk: Chunk, newest: dict[str, tuple[ProgressReported, int]]) -> None:
    contract = contract_of(ProgressReported)
    last = {key: index for index, key in enumerate(chunk.keys) if index >= chunk.start}
    for key, index in last.items():
        if key is not None:
            newest[key] = (contract.decode(chunk.slice(index)), chunk.logged_at_us(index))


async def read_lags(log: Log, now_us: int) -> list[Lag]:
    """Return how far behind each subscription that ever reported is, by name."""
    lags: list[Lag] = []
    for _, (report, reported_us) in sorted((await read_reports(log)).items()):
        if report.is_retired:
            continue
        count, oldest = report.held_records, list[int]()
        for topic, partitions in report.topics.items():
            backlog: Backlog = await log.backlog(topic, {int(number): Offset(one.through) for number, one in partitions.items()})
            count += backlog.count + sum(one.unfinished for one in partitions.values())
            unfinished = {int(number): Offset(one.oldest - 1) for number, one in partitions.items() if one.oldest is not None}
            in_hand: Backlog | None = await log.backlog(topic, unfinished) if unfinished else None
            oldest.extend([one.oldest_us for one in (backlog, in_hand) if one is not None and one.oldest_us is not None])
        age_s = max(0.0, (now_us - min(oldest)) / 1e6) if oldest else None
        lags.append(Lag(report, reported_us, count, age_s))
    return lags
