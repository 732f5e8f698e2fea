"""Bringing a log and a store together again, one of which was put back from a backup: first what it would mean, then doing it.

    an old store    handles again what came since its backup. What its handlers published then is in the log, under ids that they give
                    again: these are remembered, and not sent a second time.
    an old log      lacks what others will store in its place. Progress goes back to the end of what both have; what was handled beyond it stays
                    in the state.
    a new store     in place of a lost one: as an old one, from the first event that is kept, which builds its state again; or from where the lost
                    one had come to.

Either way the store begins a new incarnation: its relay gets a new name and numbers from 0, so that nothing new is taken for old.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal
from uuid import UUID

import msgspec

from everlog.clock import Clock
from everlog.codec import Chunk
from everlog.errors import RecordsGone
from everlog.log import Log
from everlog.position import Offset, TopicPartition
from everlog.store import Incarnation, Landmark, OutboxRow, Progress, Store, relay_of
from everlog.subscriptions.fit import Fit, compare, handled_by, landmarks_of
from everlog.subscriptions.report import progress_topic, publish_reports, read_reports, reports_of

_ROWS: Final = 1_000

Begin = Literal["first", "reported"]
"""Where a store begins that is new in place of a lost one: at the first event that is kept, or where the lost one had come to."""


class Again(msgspec.Struct, frozen=True):
    """What a subscription handles from where it stands then."""

    subscription: str
    events: int
    """Events behind its progress that the log keeps."""
    gone: int
    """How many there were that retention has deleted."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, and what it means.

    Attributes:
        fit: What was found.
        incarnation: The new one.
        again: What each subscription handles.
        in_log: Events that the handlers published and the log holds, which are not sent again.
        forgotten: Events that the log held and the store does not know, and that cannot be told from new ones: retention has deleted them.
        waiting: Rows of the outbox that will be sent.
        progress: What goes back.
        begins: Where the subscriptions of a new store begin.
        landmarks: What the log holds now.
    """

    fit: Fit
    incarnation: int
    again: Sequence[Again]
    in_log: Sequence[tuple[str, str]]
    forgotten: int
    waiting: int
    progress: Sequence[tuple[str, Progress]]
    begins: Sequence[tuple[str, Sequence[Progress]]]
    landmarks: Sequence[Landmark]

    @property
    def is_needed(self) -> bool:
        """They do not fit as they are."""
        return self.fit.log_is_old or self.fit.store_is_old or self.fit.replaced is not None


async def make_plan(app: str, log: Log, store: Store, advance: Callable[[int], None], *, begin: Begin = "first") -> Plan:
    """Compare a log and a store, and say what has to be done. Reads the whole log; changes nothing.

    Args:
        app: The app that the store belongs to.
        log: The log.
        store: Its store. Nobody works on it.
        advance: Told how many records were read.
        begin: Where a store that is new in place of a lost one begins.
    """
    fit = await compare(app, log, store)
    progress = _set_back(fit)
    rows = await _rows(store)
    begins = await _begins(app, log, fit, begin) if fit.is_new and fit.replaced is not None else []
    search = _Search(app, store.identity, store.incarnation, await store.issued(), rows, await store.sent_before())
    for topic in await log.topics():
        if topic.name != progress_topic.name:
            await search.read(log, topic.name, advance)
    in_log = set(search.found)
    missing = sum(one.log - one.store for one in fit.unknown) - search.unknown
    return Plan(
        fit=fit,
        incarnation=max(store.incarnation, fit.later or 0, search.incarnation) + 1,
        again=await _again(log, fit, dict(_by_place(progress)), dict(begins)),
        in_log=search.found,
        forgotten=max(0, missing),
        waiting=sum((row.emitted.topic, row.emitted.record.id) not in in_log for row in rows),
        progress=progress,
        begins=begins,
        landmarks=await _landmarks(log, fit, progress, search),
    )


async def mend(app: str, log: Log, store: Store, plan: Plan, clock: Clock) -> None:
    """Do what the plan says. One commit of the store; killed before or after it, the next plan does the rest.

    Raises:
        CommandRefused: Somebody works on the store.
    """
    for subscription, progress in plan.begins:
        await store.begin(subscription, progress)
    await store.reincarnate(Incarnation(plan.incarnation, plan.in_log, plan.progress, plan.landmarks))
    await tell(app, log, store, clock)


async def tell(app: str, log: Log, store: Store, clock: Clock) -> None:
    """Tell the log where the app stands now, instead of what it was told before."""
    await log.ensure_topic(progress_topic.spec())
    await publish_reports(log, app, reports_of(store.identity, await store.status()), clock.wall_us())


def _set_back(fit: Fit) -> list[tuple[str, Progress]]:
    """Return the progress that lies beyond the log, as far as the log goes."""
    ends = {(one.subscription, one.where): one.ends for one in fit.beyond}
    return [
        (
            subscription.name,
            Progress(one.where, end, [offset for offset in one.unfinished if offset <= end], one.dedupe),
        )
        for subscription in fit.status.subscriptions
        for one in subscription.progress
        if (end := ends.get((subscription.name, one.where))) is not None
    ]


def _by_place(progress: Sequence[tuple[str, Progress]]) -> Sequence[tuple[tuple[str, TopicPartition], Offset]]:
    return [((subscription, one.where), one.through) for subscription, one in progress]


async def _rows(store: Store) -> list[OutboxRow]:
    rows: list[OutboxRow] = []
    while page := await store.outbox(after=rows[-1].id if rows else 0, limit=_ROWS):
        rows.extend(page)
    return rows


async def _begins(app: str, log: Log, fit: Fit, begin: Begin) -> list[tuple[str, Sequence[Progress]]]:
    """Return where each subscription of a new store begins, on the topics that the lost one had come to."""
    known = {subscription.name for subscription in fit.status.subscriptions}
    found: list[tuple[str, Sequence[Progress]]] = []
    topics = {topic.name for topic in await log.topics()}
    for report, _ in (await read_reports(log)).values():
        if report.app != app or report.subscription not in known or report.is_retired:
            continue
        progress: list[Progress] = []
        for topic, partitions in report.topics.items():
            if topic not in topics:
                continue
            first, head = (await log.first(topic)).offsets, (await log.head(topic)).offsets
            for number, one in partitions.items():
                where = TopicPartition(topic, int(number))
                reported = Offset(max(first[where], min(one.through - one.unfinished, head[where])))
                progress.append(Progress(where, reported if begin == "reported" else first[where]))
        found.append((report.subscription, progress))
    return found


async def _landmarks(log: Log, fit: Fit, back: Sequence[tuple[str, Progress]], search: _Search) -> list[Landmark]:
    """Return what the log holds where the app will stand, and the last that its handlers have published in each partition."""
    handled = dict(handled_by(fit.status))
    for _, one in back:
        handled[one.where] = min(handled[one.where], one.through)
    found = {landmark.where: landmark for landmark in await landmarks_of(log, handled, {})}
    for last in search.last.values():
        if last.where not in found or found[last.where].offset < last.offset:
            found[last.where] = last
    return list(found.values())


async def _again(
    log: Log,
    fit: Fit,
    back: Mapping[tuple[str, TopicPartition], Offset],
    begins: Mapping[str, Sequence[Progress]],
) -> list[Again]:
    """Return what each subscription will handle once its progress is set back."""
    found: list[Again] = []
    kept = {topic.name: topic.keep_newest for topic in await log.topics()}
    for subscription in fit.status.subscriptions:
        events = gone = 0
        for one in subscription.progress or begins.get(subscription.name, ()):
            through = back.get((subscription.name, one.where), one.through)
            events += sum(offset <= through for offset in one.unfinished)
            if one.where.topic not in kept:
                continue
            events += (await log.backlog(one.where.topic, {one.where.partition: through})).count
            first = (await log.first(one.where.topic)).offsets[one.where]
            gone += 0 if kept[one.where.topic] else max(0, first - through)
        found.append(Again(subscription.name, events, gone))
    return found


class _Search:
    """Looks for events of the app's handlers that the store does not know to be in the log."""

    def __init__(
        self,
        app: str,
        store: UUID,
        incarnation: int,
        issued: Mapping[TopicPartition, int],
        rows: Sequence[OutboxRow],
        expected: Sequence[tuple[str, str]],
    ) -> None:
        self.last: dict[TopicPartition, Landmark] = {}
        """The last event of the app's handlers in each partition."""
        self.found: list[tuple[str, str]] = []
        self.unknown = 0
        """How many of them have a number of this incarnation that the store has not given."""
        self.incarnation = 0
        """The highest incarnation of the store that was met."""
        self._app = app
        self._store = store
        self._own = incarnation
        self._issued = issued
        self._expected = frozenset(expected)  # found when a former incarnation ended, and not published again yet
        self._waiting = {
            (TopicPartition(row.emitted.topic, row.emitted.record.partition), row.sequence)
            for row in rows
            if row.sequence is not None
        }

    async def read(self, log: Log, topic: str, advance: Callable[[int], None]) -> None:
        """Read a topic to the end that it has now."""
        first, head = await log.first(topic), await log.head(topic)
        left: dict[TopicPartition, Offset] = {
            where: offset for where, offset in head.offsets.items() if offset > first.offsets[where]
        }
        reader = log.reader({where: first.offsets[where] for where in left})
        try:
            while left:
                try:
                    batch = await reader.next()
                except RecordsGone as gone:
                    where = TopicPartition(gone.topic, gone.partition)
                    reader.revoke([where])
                    if gone.first < left[where]:
                        reader.assign({where: Offset(gone.first)})
                    else:
                        del left[where]
                    continue
                for chunk in batch.chunks:
                    self._take(chunk)
                    advance(len(chunk))
                left = {where: offset for where, offset in left.items() if batch.through.get(where, Offset(-1)) < offset}
        finally:
            reader.close()

    def _take(self, chunk: Chunk) -> None:
        for index in range(chunk.start, chunk.length):
            producer, number = chunk.producer(index)
            relay = relay_of(producer) if producer.startswith("relay-") else None
            if relay is None:
                continue
            store, incarnation = relay
            if store == self._store:
                self.incarnation = max(self.incarnation, incarnation)
                is_known = self._is_known(chunk.where, incarnation, number)
                self.unknown += not is_known and incarnation == self._own and number > self._issued.get(chunk.where, -1)
            else:
                is_known = False
            record = chunk.record(index)
            if record.source != self._app:
                continue
            self.last[chunk.where] = Landmark(chunk.where, record.offset, record.logged_at_us)
            place = (record.topic, record.id)
            if not is_known or place in self._expected:
                self.found.append(place)

    def _is_known(self, where: TopicPartition, incarnation: int, number: int) -> bool:
        """Tell whether the store knows that an event of its own is in the log."""
        if incarnation != self._own:
            return incarnation < self._own  # it was looked for when that one ended
        return number <= self._issued.get(where, -1) and (where, number) not in self._waiting
