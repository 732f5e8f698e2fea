"""Judges a history: what was promised and did not hold, each with the event that shows it and all that was seen of that event.

The rules are those of Jepsen's tests of queues and of Kafka (Kingsbury, "Redpanda 21.10.1", 2022, section 2: lost writes, duplicates,
inconsistent offsets, aborted reads, unseen), with those that a store with effects adds: an effect is there once, in the log's order of its
key, and under an epoch that no later one has overtaken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

from everlog.conformance.history import Effect, EventName, History, Seen, Told, places_of
from everlog.position import TopicPartition


class Rule(Enum):
    """What can be broken, each with the promise."""

    LOST = "lost"
    """What a producer was told is stored is in the log, and so is what was emitted with an effect."""
    DOUBLED = "doubled"
    """An event is in the log once, and each subscription shows its effect once."""
    REORDERED = "reordered"
    """The log has a sender's events of a key in the order in which they were sent; readers and effects follow the log's order."""
    OFFSET_REUSED = "offset reused"
    """An offset stands for one event for ever, whoever reads it and when, and for the one that its producer was told."""
    PHANTOM = "phantom"
    """What was refused, or belongs to an effect that was rolled back, is seen by nobody."""
    UNSEEN = "unseen"
    """At the end each event of its topics is handled or held by each subscription, and a reader skips none."""
    STALE = "stale"
    """Who has lost a slot commits nothing for it any more."""
    OVERLAP = "overlap"
    """Two events of one key are never handled at once."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A promise that was broken.

    Attributes:
        rule: Which.
        event: The event that shows it.
        text: What was expected and what was found, in a line.
        story: All that was seen of the event, a line each.
    """

    rule: Rule
    event: EventName
    text: str
    story: Sequence[str]

    def __str__(self) -> str:
        return "\n  ".join((f"{self.rule.value}: {self.text}", *self.story))


def judge(history: History, *, most: int = 20) -> Sequence[Fault]:
    """Return what was broken, at most so many of each rule; nothing where all promises held.

    Args:
        history: What was seen. Whoever made it has read the whole log at the end, and all effects.
        most: Faults of one rule beyond these are left out: each has its story made, and one bug often breaks thousands.
    """
    log = _Log(places_of(history), _kept(history), history.gone_through, _covered(history))
    counts = dict.fromkeys(Rule, 0)
    faults: list[Fault] = []
    for found in _found(history, log):
        counts[found.rule] += 1
        if counts[found.rule] <= most:
            faults.append(Fault(found.rule, found.event, found.text, history.story(found.event)))
    return faults


class _Found(NamedTuple):
    rule: Rule
    event: EventName
    text: str


@dataclass(frozen=True, slots=True)
class _Log:
    """The log as all readers together saw it."""

    places: Mapping[EventName, Sequence[tuple[TopicPartition, int]]]
    """Where each event stands."""
    kept: Mapping[TopicPartition, Mapping[int, Seen]]
    """What stands at each offset: the first that a reader found there."""
    gone_through: Mapping[TopicPartition, int]
    covered_through: Mapping[TopicPartition, int]
    """Up to where a reader has read everything that there ever was."""

    def is_gone(self, where: TopicPartition | None, offset: int | None) -> bool:
        """Tell whether retention may have deleted a record before anybody read it."""
        return (
            where is not None
            and offset is not None
            and self.covered_through.get(where, -1) < offset <= self.gone_through.get(where, -1)
        )

    @property
    def has_gaps(self) -> bool:
        """Retention has deleted what may have been read by nobody."""
        return any(self.covered_through.get(where, -1) < through for where, through in self.gone_through.items())


def _kept(history: History) -> Mapping[TopicPartition, Mapping[int, Seen]]:
    kept: dict[TopicPartition, dict[int, Seen]] = {}
    for (_, where), readings in history.readings.items():
        records = kept.setdefault(where, {})
        for seen in readings:
            records.setdefault(seen.offset, seen)
    return kept


def _covered(history: History) -> Mapping[TopicPartition, int]:
    covered: dict[TopicPartition, int] = {}
    for (reader, where), readings in history.readings.items():
        if reader in history.complete and readings:
            covered[where] = max(covered.get(where, -1), readings[-1].offset)
    return covered


def _found(history: History, log: _Log) -> Iterator[_Found]:
    yield from _answers(history, log)
    yield from _records(history, log)
    yield from _readers(history, log)
    yield from _senders(history, log)
    yield from _emissions(history, log)
    for subscription, rows in history.effects.items():
        yield from _effects(history, log, subscription, rows)
    for subscription in history.subscriptions:
        yield from _unseen(history, log, subscription)
    yield from _overlaps(history)


# ---- producers and the log ----


def _answers(history: History, log: _Log) -> Iterator[_Found]:
    for event, (told, where, offset) in history.answers.items():
        places = log.places.get(event, ())
        if told is Told.REFUSED and places:
            yield _Found(Rule.PHANTOM, event, f"event {event!r} was refused, and is in the log at {_place(*places[0])}")
        if told is not Told.STORED:
            continue
        if where is not None and offset is not None:
            there = log.kept.get(where, {}).get(offset)
            if there is not None and there.event != event:
                yield _Found(
                    Rule.OFFSET_REUSED,
                    event,
                    f"its producer was told that {_place(where, offset)} is event {event!r}: {there.event!r} is there",
                )
        if not places and not log.is_gone(where, offset):
            yield _Found(Rule.LOST, event, f"event {event!r} was acknowledged{_told(where, offset)}, and is not in the log")


def _records(history: History, log: _Log) -> Iterator[_Found]:
    for event, places in log.places.items():
        if len(places) > 1:
            yield _Found(
                Rule.DOUBLED,
                event,
                f"event {event!r} is in the log {len(places)} times: {', '.join(_place(*one) for one in places[:4])}",
            )
        if event not in history.sent and event not in history.emitted:
            yield _Found(Rule.PHANTOM, event, f"event {event!r} is in the log at {_place(*places[0])}, and nobody has sent it")


def _readers(history: History, log: _Log) -> Iterator[_Found]:
    order = {where: sorted(records) for where, records in log.kept.items()}
    for (reader, where), readings in history.readings.items():
        for seen in readings:
            there = log.kept[where][seen.offset].event
            if there != seen.event:
                yield _Found(
                    Rule.OFFSET_REUSED,
                    seen.event,
                    f"{reader} found event {seen.event!r} at {_place(where, seen.offset)}, and another reader {there!r}",
                )
        yield from _order_of_reading(reader, where, readings)
        if readings:
            first, last = readings[0].offset, readings[-1].offset
            given = {seen.offset for seen in readings}
            # What retention deleted is not given to a reader that is behind, and it is told so.
            for offset in order[where]:
                if first < offset < last and offset not in given and not log.is_gone(where, offset):
                    yield _Found(
                        Rule.UNSEEN,
                        log.kept[where][offset].event,
                        f"{reader} read on to offset {last} of {_partition(where)}, and skipped offset {offset}",
                    )


def _order_of_reading(reader: str, where: TopicPartition, readings: Sequence[Seen]) -> Iterator[_Found]:
    for before, after in pairwise(readings):
        if after.offset <= before.offset:
            rule = Rule.DOUBLED if after.offset == before.offset else Rule.REORDERED
            yield _Found(
                rule,
                after.event,
                f"{reader} was given offset {after.offset} of {_partition(where)} behind offset {before.offset}",
            )


def _senders(history: History, log: _Log) -> Iterator[_Found]:
    """The log's order is the sender's, in each key; of what the sender gave up on, it says nothing."""
    last: dict[tuple[str, str, str], tuple[int, EventName]] = {}
    for where, records in log.kept.items():
        last.clear()
        for offset in sorted(records):
            event = records[offset].event
            sent = history.sent.get(event)
            if sent is None or sent.key is None or log.places[event][0] != (where, offset):  # its second place is another fault
                continue
            answer = history.answers.get(event)
            if answer is not None and answer.told is Told.UNKNOWN:
                continue
            lane = (sent.sender, sent.topic, sent.key)
            number, earlier = last.get(lane, (-1, event))
            if sent.number < number:
                yield _Found(
                    Rule.REORDERED, event,
                    f"{sent.sender} sent event {event!r} before {earlier!r}, both of key {sent.key!r}: in {_partition(where)} it is behind",
                )  # fmt: skip
            else:
                last[lane] = (sent.number, event)


# ---- effects ----


def _effects(history: History, log: _Log, subscription: str, rows: Mapping[str, Sequence[Effect]]) -> Iterator[_Found]:
    shown: dict[EventName, str] = {}
    held = history.waiting.get(subscription, set())
    for row, effects in rows.items():
        last: dict[tuple[TopicPartition, str | None], tuple[int, EventName]] = {}
        epochs: dict[int, Effect] = {}
        for effect in effects:
            event = effect.event
            if event in shown:
                yield _Found(
                    Rule.DOUBLED,
                    event,
                    f"{subscription} shows the effect of event {event!r} twice: in row {shown[event]!r} and in {row!r}",
                )
                continue
            shown[event] = row
            if event in held:
                yield _Found(Rule.DOUBLED, event, f"{subscription} shows the effect of event {event!r}, and holds it")
            places = log.places.get(event)
            if not places:
                if not _may_be_gone(history, log, event):
                    yield _Found(
                        Rule.PHANTOM, event, f"{subscription} shows the effect of event {event!r}, which is not in the log"
                    )
                continue
            where, offset = places[0]
            latest = epochs.get(where.partition)
            if latest is not None and effect.epoch < latest.epoch:
                yield _Found(
                    Rule.STALE, event,
                    f"{subscription} shows the effect of event {event!r} under epoch {effect.epoch}, behind that of {latest.event!r} under {latest.epoch}",
                )  # fmt: skip
            else:
                epochs[where.partition] = effect
            lane = (where, log.kept[where][offset].key)
            earlier = last.get(lane)
            if earlier is not None and offset < earlier[0]:
                yield _Found(
                    Rule.REORDERED, event,
                    f"{subscription} handled event {event!r} behind {earlier[1]!r}, and the log has it before: offsets {offset} and {earlier[0]} "
                    f"of {_partition(where)}",
                )  # fmt: skip
            else:
                last[lane] = (offset, event)


def _may_be_gone(history: History, log: _Log, event: EventName) -> bool:
    """Tell whether an event that no reader found may have been in the log and been deleted before."""
    answer = history.answers.get(event)
    if answer is not None and answer.offset is not None:
        return log.is_gone(answer.where, answer.offset)
    return (event in history.sent or event in history.emitted) and log.has_gaps


def _emissions(history: History, log: _Log) -> Iterator[_Found]:
    shown = {
        subscription: {effect.event for effects in rows.values() for effect in effects}
        for subscription, rows in history.effects.items()
    }
    for emitted, (subscription, cause) in history.emitted.items():
        is_handled = cause in shown.get(subscription, ())
        places = log.places.get(emitted, ())
        if is_handled and not places and not _may_be_gone(history, log, emitted):
            yield _Found(
                Rule.LOST,
                emitted,
                f"{subscription} shows the effect of event {cause!r}, and what it emitted, {emitted!r}, is not in the log",
            )
        if places and not is_handled:
            yield _Found(
                Rule.PHANTOM,
                emitted,
                f"event {emitted!r} is in the log, and {subscription}, which emits it, shows no effect of {cause!r}: it was rolled back",
            )


def _unseen(history: History, log: _Log, subscription: str) -> Iterator[_Found]:
    topics, is_meant = history.subscriptions[subscription]
    shown = {effect.event for effects in history.effects.get(subscription, {}).values() for effect in effects}
    shown |= history.waiting.get(subscription, set())
    for where, records in log.kept.items():
        if where.topic not in topics:
            continue
        for offset, seen in records.items():
            if (event := seen.event) not in shown and is_meant(event):
                yield _Found(
                    Rule.UNSEEN, event, f"{subscription} has neither handled nor held event {event!r} of {_place(where, offset)}"
                )


def _overlaps(history: History) -> Iterator[_Found]:
    for (worker, key), runs in history.runs.items():
        ordered = sorted(runs, key=lambda ran: (ran.began, ran.ended))
        for before, after in pairwise(ordered):
            if after.began < before.ended:
                yield _Found(
                    Rule.OVERLAP,
                    after.event,
                    f"{worker} began event {after.event!r} of key {key!r} while {before.event!r} of the same key was still running",
                )


# ---- words ----


def _partition(where: TopicPartition) -> str:
    return f"{where.topic}[{where.partition}]"


def _place(where: TopicPartition, offset: int) -> str:
    return f"offset {offset} of {_partition(where)}"


def _told(where: TopicPartition | None, offset: int | None) -> str:
    return f" as {_place(where, offset)}" if where is not None and offset is not None else ""
