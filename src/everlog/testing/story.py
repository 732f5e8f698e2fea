"""What a failed test is told: what was published, and what every app did with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from everlog.record import StoredRecord
from everlog.testing.calls import Calls, Place, Told

_MOST_EVENTS = 100
_MOST_CALLS = 8
_MOST_CHARACTERS = 300


class Story(str):
    """The text of it. The pytest plugin knows it by this class among the notes of an error."""

    __slots__ = ()


class Standing(NamedTuple):
    """Where a subscription stands with records that it has not finished."""

    who: str
    subscribed: frozenset[str]
    """The types that it handles."""
    is_finished: Callable[[Place], bool]
    held: Mapping[Place, str]


def story_of(
    title: str, records: Sequence[StoredRecord], calls: Calls, standings: Sequence[Standing], incidents: Sequence[str]
) -> Story:
    """Return what happened in a world.

    Args:
        title: The world.
        records: What was published, in the log's order.
        calls: What handlers did.
        standings: What is not finished.
        incidents: Faults and moves of the clock, in their order.
    """
    lines = [title]
    if len(records) > _MOST_EVENTS:
        lines.append(f"({len(records) - _MOST_EVENTS} earlier events are left out)")
    for record in records[-_MOST_EVENTS:]:
        place: Place = (record.topic, record.partition, record.offset)
        lines.append(f"• {record.type} key {record.key} from {record.source}: {_cut(record.data.decode(errors='replace'))}")
        told = calls.of(place)
        if len(told) > _MOST_CALLS:
            lines.append(f"    ({len(told) - _MOST_CALLS} earlier calls are left out)")
        lines.extend(f"    {_call(one)}" for one in told[-_MOST_CALLS:])
        asked = [standing for standing in standings if record.type in standing.subscribed]
        for standing in asked:
            if place in standing.held:
                lines.append(f"    {standing.who}: {standing.held[place]}")
            elif not standing.is_finished(place):
                lines.append(f"    {standing.who}: not handled yet")
        if not asked:
            lines.append("    nobody handles it")
    if not records:
        lines.append("nothing was published")
    if incidents:
        lines.append("what was done to it:")
        lines.extend(f"    {incident}" for incident in incidents)
    return Story("\n".join(lines))


def _call(told: Told) -> str:
    twice = " (called twice, as asked)" if told.is_repeated else ""
    return f"{told.who} at {told.at_s:.3f} s {_cut(told.did)}{twice}"


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "…"
