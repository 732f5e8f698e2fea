"""From events to records: everything that can be refused is refused here, before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from typing import Any, Final, NamedTuple

from everlog.contracts.contract import Contract, contract_of
from everlog.contracts.topic import Topic
from everlog.errors import EventRefused, EventTooLarge, KeyRefused
from everlog.key import canonical_text, partition_of
from everlog.record import NewRecord

MAX_EVENTS: Final = 4_096
"""Most events of one call: fewer than a producer's dedupe range, so that a lost answer can always be resolved."""

OURS: Final = "everlog"
"""Attributes whose names begin with it say where a log has the event; another log that takes it has its own."""

_HEADER_NAME: Final = re.compile(r"[a-z0-9]{1,64}")
_RESERVED: Final = frozenset({"id", "source", "type", "subject", "time", "dataschema", "datacontenttype", "data", "specversion"})


class Addressed(NamedTuple):
    """Records of one topic, in the order of their events."""

    topic: Topic
    records: Sequence[NewRecord]
    places: Sequence[int]
    """Where each record's event stood in the call."""


class Origin(NamedTuple):
    """What the records of one call have in common."""

    source: str
    time_us: int
    headers: Mapping[str, str] | None
    spread: Callable[[Topic], int]
    """The partition of the next event of a topic without key."""


def address(
    events: Sequence[object],
    origin: Origin,
    *,
    key: object = None,
    ids: Sequence[str] | None = None,
) -> Sequence[Addressed]:
    """Check events against their contracts and return them as records, by topic.

    Args:
        events: Instances of classes that were given to a topic; at most `MAX_EVENTS`.
        origin: Source, time and headers of all of them.
        key: The key of all, for topics declared with `key=None`.
        ids: The id of each; ``None`` derives them in the log.

    Raises:
        EventRefused: One breaks its contract, or a header's name or value is none. Nothing was changed.
    """
    if len(events) > MAX_EVENTS:
        raise EventTooLarge(
            f"expected at most {MAX_EVENTS:,} events in one call, found {len(events):,}: publish them in batches of 1,000"
        )
    check_headers(origin.headers)
    if len(set(map(type, events))) == 1:  # as nearly always; the rest is for several
        contract = contract_of(type(events[0]))
        return [Addressed(contract.topic, _records(contract, events, origin, key, ids), range(len(events)))]
    by_class: dict[type[Any], list[int]] = {}
    for place, event in enumerate(events):
        by_class.setdefault(type(event), []).append(place)
    by_topic: dict[Topic, list[tuple[int, NewRecord]]] = {}
    for cls, places in by_class.items():
        contract = contract_of(cls)
        chosen = events if len(by_class) == 1 else [events[place] for place in places]
        records = _records(contract, chosen, origin, key, [ids[place] for place in places] if ids else None)
        by_topic.setdefault(contract.topic, []).extend(zip(places, records, strict=True))
    if len(by_class) > 1:
        for pairs in by_topic.values():
            pairs.sort(key=_place)
    return [Addressed(topic, [record for _, record in pairs], [place for place, _ in pairs]) for topic, pairs in by_topic.items()]


def address_one(event: object, origin: Origin, id_: str) -> tuple[Topic, NewRecord]:
    """Check one event as `address` does, and return it as a record with its topic. The headers were checked.

    Raises:
        EventRefused: It breaks its contract.
    """
    contract: Contract[Any] = contract_of(type(event))
    data = contract.encode_one(event)
    topic = contract.topic
    (key,) = contract.keys((event,))
    partition = partition_of(key, topic.partitions) if key is not None else origin.spread(topic)
    record = NewRecord(
        contract.name, data, key, partition, origin.source, origin.time_us, id_, origin.headers, contract.fingerprint
    )
    return topic, record


def _place(pair: tuple[int, NewRecord]) -> int:
    return pair[0]


def _records(
    contract: Contract[Any], events: Sequence[Any], origin: Origin, key: object, ids: Sequence[str] | None
) -> list[NewRecord]:
    datas = contract.encode(events)
    topic = contract.topic
    name, source, time_us, headers, schema, count = (
        contract.name,
        origin.source,
        origin.time_us,
        origin.headers,
        contract.fingerprint,
        topic.partitions,
    )
    if key is None:
        keys = contract.keys(events)
    elif topic.key is None:
        keys = [canonical_text(key)] * len(events)
    else:
        raise KeyRefused(f"topic {topic.name!r} takes its key from the field {topic.key!r}: leave out key=")
    try:
        partitions = [partition_of(text, count) if text is not None else origin.spread(topic) for text in keys]
        fields = (datas, keys, partitions, repeat(source), repeat(time_us), ids or repeat(None), repeat(headers), repeat(schema))
        return list(map(NewRecord, repeat(name), *fields))  # a third less than a comprehension takes
    except UnicodeEncodeError as error:  # a key field's str went through `encode` above, so this is a key= argument
        raise KeyRefused(f"the key {key!r} holds a lone surrogate, which UTF-8 cannot carry") from error


def check_headers(headers: Mapping[str, str] | None) -> None:
    """Refuse what is no CloudEvents extension.

    Raises:
        EventRefused: Names the header.
    """
    given: dict[object, object] = dict((headers or {}).items())  # users' code is checked by no type checker, perhaps
    for name, value in given.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name) or name in _RESERVED:
            raise EventRefused(
                f"header {name!r}: expected a name of lower-case letters and digits that the envelope does not use itself"
            )
        if name.startswith(OURS):
            raise EventRefused(f"header {name!r}: names that begin with {OURS!r} say where a log has an event: choose another")
        if not isinstance(value, str):
            raise EventRefused(f"header {name!r}: expected text, found {type(value).__name__} {value!r}")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise EventRefused(f"header {name!r}: its text holds a lone surrogate, which UTF-8 cannot carry") from error
