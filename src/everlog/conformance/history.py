"""What happened to events, as those who took part saw it: producers, readers of the log, handlers, and the stores at the end.

Made by a test while it breaks things, and then judged by `everlog.conformance.judge`. An event is named by whoever makes the test, with a
number or a text that its payload carries too, so that it is recognised wherever it turns up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple, TypeAlias

from everlog.position import TopicPartition

EventName: TypeAlias = int | str


class Told(Enum):
    """What a producer was told of an event."""

    STORED = "stored"
    REFUSED = "refused"
    UNKNOWN = "unknown"


class Sent(NamedTuple):
    """An event on its way into the log."""

    sender: str
    topic: str
    key: str | None
    number: int
    """Its place among all that this sender has sent."""


class Answer(NamedTuple):
    """What its producer was told, and at which place it is stored, where it was told one."""

    told: Told
    where: TopicPartition | None
    offset: int | None


class Seen(NamedTuple):
    """A record as a reader found it."""

    offset: int
    event: EventName
    key: str | None


class Ran(NamedTuple):
    """One call of a handler."""

    event: EventName
    key: str
    began: float
    ended: float


class Effect(NamedTuple):
    """That an event was handled, as the store of the subscription shows it."""

    event: EventName
    epoch: int = 0
    """The epoch of the lease under which it was handled; 0 where nobody knows."""


class History:
    """All that was seen of a run. Filled in any order, but for what each method says; nothing is judged here."""

    def __init__(self) -> None:
        self.sent: dict[EventName, Sent] = {}
        self.answers: dict[EventName, Answer] = {}
        self.readings: dict[tuple[str, TopicPartition], list[Seen]] = {}
        self.complete: set[str] = set()
        self.gone_through: dict[TopicPartition, int] = {}
        self.runs: dict[tuple[str, str], list[Ran]] = {}
        self.effects: dict[str, dict[str, Sequence[Effect]]] = {}
        self.waiting: dict[str, set[EventName]] = {}
        self.emitted: dict[EventName, tuple[str, EventName]] = {}
        self.subscriptions: dict[str, tuple[frozenset[str], Callable[[EventName], bool]]] = {}
        self._count_of: dict[str, int] = {}

    # ---- producers ----

    def sends(self, sender: str, event: EventName, topic: str, key: str | None) -> None:
        """Note that an event is about to be published. A sender's calls come in the order in which it publishes.

        Args:
            sender: Whoever keeps an order: one client, for as long as it lives.
            event: Its name. Events that are published as one and the same, such as a retry, have one name and one call.
            topic: Where to.
            key: What it is ordered by; ``None`` where it is not.
        """
        number = self._count_of[sender] = self._count_of.get(sender, 0) + 1
        self.sent[event] = Sent(sender, topic, key, number)

    def told(self, event: EventName, told: Told, where: TopicPartition | None = None, offset: int | None = None) -> None:
        """Note what the producer was told. An event without such a call was published by a producer that was gone before."""
        self.answers[event] = Answer(told, where, offset)

    # ---- the log ----

    def read(self, reader: str, where: TopicPartition, offset: int, event: EventName, key: str | None) -> None:
        """Note a record that a reader was given. A reader's calls of one partition come in the order in which it got them.

        What no reader was given is not in the log: one of them reads everything at the end.
        """
        self.readings.setdefault((reader, where), []).append(Seen(offset, event, key))

    def reads_all(self, reader: str) -> None:
        """Note that a reader began with the first record of each partition that it read, before anything was deleted.

        So what it was not given was never there, even if it is not kept any more.
        """
        self.complete.add(reader)

    def gone(self, where: TopicPartition, through: int) -> None:
        """Note that retention has deleted all up to this offset."""
        self.gone_through[where] = max(through, self.gone_through.get(where, -1))

    # ---- subscriptions ----

    def subscribes(self, subscription: str, topics: Sequence[str], only: Callable[[EventName], bool] = lambda _: True) -> None:
        """Note that a subscription has to have handled all events of some topics, from the first one on; or only some of them."""
        self.subscriptions[subscription] = (frozenset(topics), only)

    def ran(self, worker: str, event: EventName, key: str, began: float, ended: float) -> None:
        """Note one call of a handler.

        Args:
            worker: The subscription and the process. A process that has lost its lease may still be running what another runs too.
            event: Which event it was called for.
            key: Of the event.
            began: When, in any unit.
            ended: When it had returned, in the same.
        """
        self.runs.setdefault((worker, key), []).append(Ran(event, key, began, ended))

    def applied(self, subscription: str, row: str, effects: Sequence[Effect]) -> None:
        """Note the effects that a row of the subscription's store shows at the end, in the order of their commits."""
        self.effects.setdefault(subscription, {})[row] = effects

    def held(self, subscription: str, event: EventName) -> None:
        """Note an event that the subscription has kept for later, or was told to skip."""
        self.waiting.setdefault(subscription, set()).add(event)

    def emits(self, subscription: str, event: EventName, emitted: EventName) -> None:
        """Note that handling `event` publishes `emitted`: whenever the effect of the one shows, the other is in the log, and only then."""
        self.emitted[emitted] = (subscription, event)

    # ---- what became of one event ----

    def story(self, event: EventName) -> Sequence[str]:
        """Return all that was seen of an event, a line each, from its producer to its effects."""
        lines: list[str] = []
        if event in self.sent:
            sender, topic, key, number = self.sent[event]
            lines.append(f"sent by {sender}, as its number {number}, to {topic} under key {key!r}")
        if event in self.emitted:
            subscription, cause = self.emitted[event]
            lines.append(f"emitted by {subscription} for event {cause!r}")
        if event in self.answers:
            told, where, offset = self.answers[event]
            place = f" at offset {offset} of {where.topic}[{where.partition}]" if where is not None else ""
            lines.append(f"its producer was told: {told.value}{place}")
        lines.extend(self._readings_of(event))
        for (worker, _), runs in self.runs.items():
            lines.extend(f"{worker}: handled from {ran.began:.6f} to {ran.ended:.6f}" for ran in runs if ran.event == event)
        for subscription, rows in self.effects.items():
            for row, effects in rows.items():
                lines.extend(
                    f"{subscription}: effect {place + 1} of {len(effects)} in row {row!r}, epoch {effect.epoch}, {_around(effects, place)}"
                    for place, effect in enumerate(effects)
                    if effect.event == event
                )
        lines.extend(f"{subscription}: held" for subscription, events in self.waiting.items() if event in events)
        return lines or ["nobody has seen anything of it"]

    def _readings_of(self, event: EventName) -> Sequence[str]:
        places: dict[tuple[TopicPartition, int], list[str]] = {}
        for (reader, where), readings in self.readings.items():
            for seen in readings:
                if seen.event == event:
                    places.setdefault((where, seen.offset), []).append(reader)
        lines = [
            f"read at offset {offset} of {where.topic}[{where.partition}], by {', '.join(readers)}"
            for (where, offset), readers in places.items()
        ]
        return lines or ["no reader has found it in the log"]


def _around(effects: Sequence[Effect], place: int) -> str:
    before = f"behind {effects[place - 1].event!r}" if place else "first"
    after = f", before {effects[place + 1].event!r}" if place + 1 < len(effects) else ""
    return before + after


def places_of(history: History) -> Mapping[EventName, Sequence[tuple[TopicPartition, int]]]:
    """Return where in the log each event was found by anybody, each place once, ascending within a partition."""
    found: dict[EventName, list[tuple[TopicPartition, int]]] = {}
    for (_, where), readings in history.readings.items():
        for offset, event, _ in readings:
            place = (where, offset)
            known = found.get(event)
            if known is None:
                found[event] = [place]
            elif place not in known:
                known.append(place)
                known.sort()
    return found
