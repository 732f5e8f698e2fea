"""What a log asks its writer thread for."""

from __future__ import annotations

from typing import NamedTuple

from everlog.appending import Append
from everlog.log import Appended, TopicSpec
from everlog.logs.sqlite.retention import Deletion, GiveBack


class Limiting(NamedTuple):
    """One call of `set_retention`."""

    topic: str
    keep_s: float | None
    keep_bytes: int | None


Job = Append | TopicSpec | Limiting | Deletion | GiveBack
"""What the writer thread is asked for."""
Done = Appended | int | None
"""What it gives back; a number for a step of retention."""


def size_of(job: Job) -> int:
    """Return about how many bytes a job writes."""
    if isinstance(job, Append):
        return job.size
    return 1_000


def is_alone(job: Job) -> bool:
    """Tell whether a job has a transaction of its own: damage in old pages, which retention meets, must not fail what is appended."""
    return isinstance(job, Deletion | GiveBack)
