"""What a campaign is to do, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from everlog.conformance.judge import Fault

WORKERS: Final = 2
"""Of each service."""
READY_S: Final = 30.0
"""A process says within so many seconds that it is ready."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a campaign does.

    Attributes:
        seconds: For how long faults are injected.
        seed: Of all dice. The same seed injects the same faults at the same times, as far as the machine keeps pace.
        rate: Events that all producers together publish in a second, at most.
        pause_s: Between two faults, about.
        faults: Kind → weight; ``None`` for all.
        keys: So many are used in ten seconds.
        points_once: Kill at each named point once, do nothing else, and end when that is done; fail after `seconds`.
        bug: Seeded into all processes.
        lease_s: Of the workers.
        log_url, store_url: Where log and stores are, the latter with `{app}`; empty for files in the folder of the campaign.
    """

    seconds: float
    seed: int
    rate: float = 1_200.0
    pause_s: float = 0.25
    faults: Mapping[str, int] | None = None
    bug: str | None = None
    lease_s: float = 0.5
    kept_behind: int = 100
    keys: int = 100
    points_once: bool = False
    log_url: str = ""
    store_url: str = ""


@dataclass(slots=True)
class Sample:
    """What the processes that are never killed looked like at one moment."""

    at_s: float
    memory_kib: Mapping[str, int]
    files: Mapping[str, int]
    wal_bytes: int


@dataclass(slots=True)
class Result:
    """What came of a campaign."""

    plan: Plan
    injected: Counter[str] = field(default_factory=Counter[str])
    survived: Counter[str] = field(default_factory=Counter[str])
    faults: Sequence[Fault] = ()
    published: int = 0
    emitted: int = 0
    unanswered: int = 0
    ran_s: float = 0.0
    settled_s: float = 0.0
    samples: list[Sample] = field(default_factory=list[Sample])
    latencies: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    """When each call of a producer was answered, and how long it took, in seconds."""
