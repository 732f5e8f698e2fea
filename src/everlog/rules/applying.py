"""Judging the units of one commit: each is applied whole or not at all, against the rows as the units before it leave them.

A store says what its rows are; what it has not looked up before is asked of it. Nothing is written here: what has changed stands in `Rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from everlog.amount import total
from everlog.position import Offset, TopicPartition
from everlog.store import Add, Outcome, Progress, Put, Room, ScanRead, Slot, StateKey, Unit

Row = tuple[bytes | None, int]
"""Value and version; ``None`` and 0 for an absent row."""
_encode: Final = msgspec.msgpack.Encoder().encode


class Span(NamedTuple):
    """The keys that start with the whole elements of a prefix: those in `low` ≤ key < `high`, and `exact`."""

    low: str
    high: str
    exact: str

    def has(self, key: str) -> bool:
        """Tell whether a key is one of them."""
        return self.low <= key < self.high or key == self.exact


def span_of(prefix: str) -> Span:
    """Return where in the order of texts the keys with this prefix stand.

    In canonical JSON an element is followed by `,` or by `]`. So behind `["a"` come `["a",…` and `["a"]` itself, never `["ab"]`; and of
    `[1`, which is also the start of `[12]`, `[1,` is not. `-` is the sign after `,` and a backslash the one after `[`.
    """
    if prefix == "[]":
        return Span("[", "\\", "")
    return Span(prefix[:-1] + ",", prefix[:-1] + "-", prefix)


class Rows:
    """The rows of state as the units applied so far leave them. Each is read at most once and written at most once.

    Args:
        row: Returns a row as it is stored.
        shown: Returns the keys and versions that a scan of a state and prefix finds stored.
        seen: Versions of rows that were looked up before.
    """

    def __init__(
        self,
        row: Callable[[StateKey], Row],
        shown: Callable[[str, str], Mapping[str, int]],
        seen: Mapping[StateKey, int],
    ) -> None:
        self._stored = row
        self._shown = shown
        self._seen = seen
        self._rows: dict[StateKey, Row] = {}  # what was read or changed
        self.changed: dict[StateKey, Row] = {}
        """What the units applied so far have changed; an absent row is to be deleted."""

    def apply(self, unit: Unit) -> Outcome:
        """Take the unit's writes, if all that it read still stands and its amounts can be added. Otherwise take nothing."""
        for key, version in unit.reads.items():
            if self._version(key) != version:
                return Outcome.CONFLICT
        for scan in unit.scans:
            if not self._still_shows(scan):
                return Outcome.CONFLICT
        changes: dict[StateKey, Row] = {}
        for key, write in unit.writes.items():
            if isinstance(write, Put):
                changes[key] = (write.value, unit.version)
            elif isinstance(write, Add):
                added = total(self._row(key)[0], write.amount)
                if added is None:
                    return Outcome.REFUSED
                changes[key] = (added, unit.version)
            else:
                changes[key] = (None, 0)
        self._rows.update(changes)
        self.changed.update(changes)
        return Outcome.COMMITTED

    def _version(self, key: StateKey) -> int:
        row = self._rows.get(key)
        if row is None:
            seen = self._seen.get(key)
            if seen is not None:
                return seen
            row = self._row(key)
        return row[1]

    def _row(self, key: StateKey) -> Row:
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = self._stored(key)
        return row

    def _still_shows(self, scan: ScanRead) -> bool:
        span = span_of(scan.prefix)
        now = dict(self._shown(scan.state, scan.prefix))
        for (state, key), (value, version) in self.changed.items():
            if state == scan.state and span.has(key):
                if value is None:
                    now.pop(key, None)
                else:
                    now[key] = version
        return now == dict(scan.rows)


class Holding:
    """What is held, and how much of it by each subscription, as the units applied so far leave it.

    Args:
        is_held: Tells whether a record is held.
        room: Returns how much a subscription holds.
    """

    def __init__(self, is_held: Callable[[int], bool], room: Callable[[str], Room]) -> None:
        self._is_held = is_held
        self._room = room
        self._held: dict[str, Room] = {}
        self._released: set[int] = set()

    def has(self, ids: Sequence[int]) -> bool:
        """Tell whether all of these are held still: whoever handled one that is gone has handled it a second time."""
        return self._released.isdisjoint(ids) and all(self._is_held(one) for one in ids)

    def has_room(self, unit: Unit) -> bool:
        """Tell whether the unit's copies fit."""
        if unit.room is None:
            return True
        after = self._with(unit)
        return after.records <= unit.room.records and after.size_bytes <= unit.room.size_bytes

    def add(self, unit: Unit) -> None:
        """Count what a unit that is applied holds and releases."""
        self._released.update(unit.releases)
        if unit.holds:
            self._held[unit.slot.subscription] = self._with(unit)

    def _with(self, unit: Unit) -> Room:
        name = unit.slot.subscription
        held = self._held.get(name)
        if held is None:
            held = self._room(name)
        return Room(held.records + len(unit.holds), held.size_bytes + sum(len(hold.record.data) for hold in unit.holds))


class Judged(NamedTuple):
    """What becomes of the units of a commit."""

    outcomes: Sequence[Outcome]
    """One per unit, in their order."""
    applied: Sequence[Unit]
    put_back: Mapping[tuple[Slot, TopicPartition], set[Offset]]
    """What the others would have finished."""

    def unfinished(self, slot: Slot, progress: Progress) -> bytes:
        """Return the unfinished offsets of a partition as they are to be stored: with those of units that are not applied."""
        return _unfinished(progress, self.put_back.get((slot, progress.where)))


def _unfinished(progress: Progress, put_back: set[Offset] | None) -> bytes:
    if not put_back:
        return _encode(sorted(progress.unfinished))
    # An offset above `through` is not claimed to be finished, so it needs no exception.
    return _encode(sorted({*progress.unfinished, *(offset for offset in put_back if offset <= progress.through)}))


def judge(units: Sequence[Unit], owned: Container[Slot], rows: Rows, holding: Holding) -> Judged:
    """Say of each unit whether it is applied, in their order; see `Store.commit`.

    Args:
        units: All of the commit.
        owned: The slots whose lease counts.
        rows: Takes what the applied ones write.
        holding: Takes what they hold.
    """
    outcomes: list[Outcome] = []
    applied: list[Unit] = []
    put_back: dict[tuple[Slot, TopicPartition], set[Offset]] = {}
    broken_lanes: set[tuple[Slot, str | None]] = set()
    for unit in units:
        lane = (unit.slot, unit.lane)
        if unit.slot not in owned:
            outcome = Outcome.FENCED
        elif lane in broken_lanes:
            outcome = Outcome.DROPPED
        elif unit.releases and not holding.has(unit.releases):
            outcome = Outcome.CONFLICT
        elif unit.holds and not holding.has_room(unit):
            outcome = Outcome.FULL
        else:
            outcome = rows.apply(unit)
        outcomes.append(outcome)
        if outcome is Outcome.COMMITTED:
            applied.append(unit)
            holding.add(unit)
            continue
        if unit.lane is not None:
            broken_lanes.add(lane)
        for where, offset in unit.finishes:
            put_back.setdefault((unit.slot, where), set()).add(offset)
    return Judged(outcomes, applied, put_back)
