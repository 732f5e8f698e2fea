"""Logs that wait to be read: each is filled once, and read by every benchmark that asks for its size."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from benchmarks.sample import order_events, publisher, settings_in
from benchmarks.service import run_as_service

_AT_ONCE: Final = 4_000
_DIFFERENT: Final = 200_000
"""After so many events they come again: to make millions would take longer than to publish them."""


class Backlogs:
    """Folders with a log of so many events.

    Args:
        folder: Where; whoever made it removes it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._filled: dict[tuple[int, str], Path] = {}

    def of(self, events: int, *, whose: str = "") -> Path:
        """Return the folder whose `log.db` holds at least so many events of `sample.orders`, filling it at the first call.

        Args:
            events: How many. Whoever reads the log may have appended a few more.
            whose: Set by those who append many, or of other topics: their log is their own.
        """
        known = self._filled.get((events, whose))
        if known is None:
            known = self._folder / f"{events}{whose}"
            known.mkdir()
            run_as_service(_fill(known, events))
            self._filled[events, whose] = known
        return known


async def _fill(folder: Path, count: int) -> None:
    events = order_events(min(count, _DIFFERENT))
    async with publisher.connect(settings_in(folder)) as client:
        left = count
        while left:
            for at in range(0, min(left, len(events)), _AT_ONCE):
                batch = events[at : min(at + _AT_ONCE, left + at)]
                await client.publish(*batch)
                left -= len(batch)
