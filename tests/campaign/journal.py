"""What a process saw, in a file that outlives its kill: a line for each thing, written at once, and only ever appended to.

`sends` and `told` are the producers', `read` the followers', `overlap` the workers'. See `everlog.conformance.history` for what they mean.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from everlog.conformance.history import History, Told
from everlog.position import TopicPartition


class Sends(msgspec.Struct, tag="sends", array_like=True):
    """Events that are about to be published by one call."""

    sender: str
    topic: str
    events: Sequence[tuple[int, str]]
    """Name and key of each."""


class Answered(msgspec.Struct, tag="told", array_like=True):
    """What the producer was told of them."""

    told: Literal["stored", "refused", "unknown"]
    names: Sequence[int]
    places: Sequence[tuple[int, str, int, int]] = ()
    """Name, topic, partition and offset of those whose place it was told: the last one in each partition."""
    took_s: float = 0.0
    at_s: float = 0.0
    """When, by the clock that all processes share."""


class Read(msgspec.Struct, tag="read", array_like=True):
    """Records that a reader was given, in order."""

    reader: str
    topic: str
    partition: int
    records: Sequence[tuple[int, int, str]]
    """Offset, name and key of each."""


class Overlap(msgspec.Struct, tag="overlap", array_like=True):
    """Two events of one key that one process handled at once."""

    worker: str
    key: str
    first: int
    second: int


class Happened(msgspec.Struct, tag="happened", array_like=True):
    """A fault that the process did to itself and outlived."""

    kind: str


Line: TypeAlias = Sends | Answered | Read | Overlap | Happened
_lines = msgspec.json.Decoder(Line)


class Journal:
    """One process's file."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, line: Line) -> None:
        """Write a line; it is there when this returns, whatever becomes of the process."""
        os.write(self._fd, msgspec.json.encode(line) + b"\n")


def lines_of(path: Path) -> Iterator[Line]:
    """Yield the lines of a journal; one that was cut off by a kill is none."""
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield _lines.decode(line)


def read_into(history: History, path: Path) -> Sequence[Happened | Answered]:
    """Bring all lines of a journal into a history; return those that a report counts."""
    counted: list[Happened | Answered] = []
    for line in lines_of(path):
        match line:
            case Sends(sender, topic, events):
                for name, key in events:
                    history.sends(sender, name, topic, key)
            case Happened():
                counted.append(line)
            case Answered(told, names, places):
                counted.append(line)
                for name in names:
                    history.told(name, Told(told))
                for name, topic, partition, offset in places:
                    history.told(name, Told(told), TopicPartition(topic, partition), offset)
            case Read(reader, topic, partition, records):
                where = TopicPartition(topic, partition)
                for offset, name, key in records:
                    history.read(reader, where, offset, name, key)
            case Overlap(worker, key, first, second):
                at = 10.0 * len(history.runs.get((worker, key), ()))  # nobody noted when, but that they met
                history.ran(worker, first, key, at, at + 2)
                history.ran(worker, second, key, at + 1, at + 3)
    return counted
