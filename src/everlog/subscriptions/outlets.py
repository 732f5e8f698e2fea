"""Outlets: the topics that handlers publish to, made or found before the first event for them is committed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, cast

from everlog.contracts.contract import contract_of
from everlog.contracts.topic import Topic
from everlog.errors import EventRefused, TopicMissing
from everlog.log import Log
from everlog.subscriptions.tx import Tx


class Outlets:
    """Which topics the log is known to have. What a handler publishes to an unknown one is its own failure, and not the relay's.

    Args:
        log: The log.
        create_topics: Make what is missing.
    """

    def __init__(self, log: Log, *, create_topics: bool) -> None:
        self._log = log
        self._create_topics = create_topics
        self._last: tuple[type, Topic, int] | None = None
        """The class of a single event that was published last, its topic, and how many types that had."""
        self._known: set[tuple[str, int]] = set()  # a topic gets new types when more modules are imported

    def missing(self, tx: Tx[Any] | None, result: object) -> Sequence[Topic]:
        """Return the topics of what a handler publishes that are not known yet."""
        if (
            tx is None or not tx.outgoing
        ) and self._last is not None:  # as nearly always: one event, of the same class as the last one
            cls, topic, types = self._last
            if type(result) is cls and len(topic.contracts) == types:
                return ()
        events: list[object] = [event for out in tx.outgoing for event in out.events] if tx is not None else []
        events.extend(cast("Sequence[object]", result) if isinstance(result, list | tuple) else (result,))
        topics = _topics(events)
        missing = [topic for topic in topics if _place(topic) not in self._known]
        if len(events) == 1 and len(topics) == 1 and not missing:
            (topic,) = topics
            self._last = (type(events[0]), topic, len(topic.contracts))
        return missing

    async def open(self, topics: Iterable[Topic]) -> None:
        """Make sure that the log has these topics.

        Raises:
            TopicMissing: One is not there, and `create_topics` is off.
            StartRefused: One stands in the log with other settings, or another schema.
        """
        for topic in topics:
            if self._create_topics:
                await self._log.ensure_topic(topic.spec())
            elif all(spec.name != topic.name for spec in await self._log.topics()):
                raise TopicMissing(topic.name)
            self._known.add(_place(topic))


def _place(topic: Topic) -> tuple[str, int]:
    return topic.name, len(topic.contracts)


def _topics(events: Sequence[object]) -> Collection[Topic]:
    found: dict[str, Topic] = {}
    for cls in {type(event) for event in events if event is not None}:
        try:
            topic = contract_of(cls).topic
        except EventRefused:  # no event: whoever makes the unit says so
            continue
        found[topic.name] = topic
    return found.values()
