"""Seeded bugs that the power cuts must catch: each records a short trace with the bug in it, and cuts until the judge has found something."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.faults.power_cuts import Verdict, judged, made_by, told_behind_a_failed_sync
from tests.faults.power_run import record_a_failed_sync, record_quickly
from tests.faults.vfs import Step

NO_BUG: Final = "none"
_IMAGES: Final = 60
"""At most so many cuts; a bug is found within some ten."""


@dataclass(frozen=True, slots=True)
class PowerControl:
    """One bug.

    Attributes:
        name: What is broken, in a sentence.
        bug: Under which name `power_shop` and the recorder know it.
        record: Records a trace with a bug.
        begin: Tells before which step of it the first cut may be.
    """

    name: str
    bug: str
    record: Callable[[Path, str], Awaitable[Path]]
    begin: Callable[[Sequence[Step]], int] = made_by

    async def run(self, *, seed: int = 1, bug: str | None = None) -> Sequence[str]:
        """Return what the judge found, by default with the bug; with `NO_BUG` it has to be nothing."""
        with tempfile.TemporaryDirectory(prefix="everlog-") as name:
            trace = await self.record(Path(name), self.bug if bug is None else bug)
            verdicts = await judged(trace, seed=seed, images=_IMAGES, begin=self.begin, enough=_has_faults)
        return [str(verdict) for verdict in verdicts if verdict.faults]


def _has_faults(verdicts: Sequence[Verdict]) -> bool:
    return bool(verdicts[-1].faults)


async def _shop(folder: Path, bug: str) -> Path:
    return await record_quickly(folder, 1, bug=bug)


async def _failed_sync(folder: Path, bug: str) -> Path:
    return await record_a_failed_sync(folder, 1, bug=bug)


CONTROLS: Final[Sequence[PowerControl]] = (
    PowerControl("an event is acknowledged before it is synced", "acknowledges before the sync", _shop),
    PowerControl("the WAL is never synced, not before a checkpoint either", "no sync of the WAL", _shop),
    PowerControl(
        "what is acknowledged after a failed sync stands on what was not synced",
        "builds on what was not synced",
        _failed_sync,
        told_behind_a_failed_sync,
    ),
    PowerControl("progress is committed in one transaction, and the effects in the next", "progress before effects", _shop),
)
