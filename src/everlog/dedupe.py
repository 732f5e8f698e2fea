"""Dedupe by membership: which numbers of one producer were seen, in one topic partition.

Testing "not above the last" loses events when sends interleave; what was seen is therefore kept exactly, within a range.
"""

from __future__ import annotations

import enum

import msgspec

from everlog.log import DEDUPE_RANGE


class Verdict(enum.Enum):
    """What a number means to a log that has seen others."""

    NEW = "new"
    SEEN = "seen"
    BELOW = "below the range"


class Seen(msgspec.Struct):
    """The highest number seen and the missing ones in the `DEDUPE_RANGE` below it.

    `missing` holds half-open ranges, ascending, apart from each other and all at or below `highest`.
    """

    highest: int = -1
    missing: list[tuple[int, int]] = []

    def judge(self, number: int) -> Verdict:
        """Say what `number` is, without taking it."""
        if number > self.highest:
            return Verdict.NEW
        if any(start <= number < stop for start, stop in self.missing):
            return Verdict.NEW
        return Verdict.BELOW if number <= self.highest - DEDUPE_RANGE else Verdict.SEEN

    def take(self, start: int, stop: int) -> None:
        """Mark the numbers from `start` up to, but without, `stop` as seen. They must be `NEW`."""
        if start > self.highest:
            if start > self.highest + 1:
                self.missing.append((self.highest + 1, start))
            self.highest = stop - 1
        else:
            self.missing = [
                piece
                for low, high in self.missing
                for piece in ((low, min(high, start)), (max(low, stop), high))
                if piece[0] < piece[1]
            ]
        if self.missing:
            floor = self.highest - DEDUPE_RANGE + 1
            self.missing = [(max(low, floor), high) for low, high in self.missing if high > floor]

    def new_runs(self, start: int, count: int) -> list[tuple[int, int]] | None:
        """Return the half-open ranges of `start` … `start + count` that are new; ``None`` if one lies below the range."""
        if start > self.highest:
            return [(start, start + count)]
        runs: list[tuple[int, int]] = []
        for number in range(start, start + count):
            verdict = self.judge(number)
            if verdict is Verdict.BELOW:
                return None
            if verdict is Verdict.NEW:
                if runs and runs[-1][1] == number:
                    runs[-1] = (runs[-1][0], number + 1)
                else:
                    runs.append((number, number + 1))
        return runs
