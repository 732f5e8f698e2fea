"""What somebody who looks at a log, a store or a machine has found, and what to do about it."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

import msgspec

MACHINE: Final = "machine"
"""The subject of what does not belong to one log or store."""


class Level(enum.Enum):
    """What a finding means."""

    OK = "ok"
    WARNING = "warning"
    """It works, and something may not last, or not be as fast or as private as it should."""
    PROBLEM = "problem"
    """It does not work, or what is promised does not hold."""


class Judgement(NamedTuple):
    """A finding without its name."""

    level: Level
    found: str
    advice: str = ""


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    Attributes:
        subject: What it belongs to: `machine`, `log`, `store of billing`, or a folder.
        name: What was looked at, unique within the subject.
        level: What it means.
        found: What was found, in a line.
        advice: What to do, or what to know; empty where that is nothing.
    """

    subject: str
    name: str
    level: Level
    found: str
    advice: str = ""


class Examined(NamedTuple):
    """What an adapter has found out about one log or store, without opening it."""

    findings: Sequence[Finding]
    log: UUID | None
    """The log's identity; of a store, that of the log which its progress belongs to. ``None``: there is none yet, or it cannot be read."""
