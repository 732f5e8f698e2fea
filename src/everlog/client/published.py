"""What a publisher is told: the ids of its events, and where they stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from everlog.position import Position


class Published:
    """What became of the events of one call."""

    __slots__ = ("_ids", "position")

    def __init__(self, ids: Callable[[], Sequence[str]], position: Position) -> None:
        self._ids = ids
        self.position = position
        """Behind the events that this call stored. What was stored before, by a retry of a lost answer, is not in it."""

    @property
    def ids(self) -> Sequence[str]:
        """Each event's id, unique within the source, in the order of the call. Made when it is asked for."""
        return self._ids()
