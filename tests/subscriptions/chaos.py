"""What must be true after any run with failures and crashes, told from what was published alone. Free of everything that it judges."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Sent(NamedTuple):
    """An event that was acknowledged."""

    topic: str
    key: str
    n: int


class Outcome(NamedTuple):
    """What was found at the end.

    Attributes:
        journal: By key: what its handler wrote down, `[topic, n]`, in the order of the commits.
        totals: By group: what `add` came to.
        shared: By row: what read, wait and put came to.
        emitted: `(key, text)` of every event that handlers published, each partition's in order.
        ids: The ids of these.
    """

    journal: Mapping[str, Sequence[tuple[str, int]]]
    totals: Mapping[str, int]
    shared: Mapping[str, int]
    emitted: Sequence[tuple[str, str]]
    ids: Sequence[str]


GROUPS = 3


def group_of(key: str) -> str:
    """Return a row that several keys share."""
    return f"g{int(key[1:]) % GROUPS}"


def faults(sent: Sequence[Sent], found: Outcome, *, share_every: int = 1) -> list[str]:
    """Compare with a sequential model: every event once, each topic's events of a key in order, nothing else.

    Args:
        sent: Every event in the log, each key's in the order of the log within its topic; nothing is promised across topics.
        found: The end state.
        share_every: Only events whose number is a multiple of this count in the shared rows.
    """
    wrong: list[str] = []
    expected: dict[tuple[str, str], list[int]] = {}
    for topic, key, n in sent:
        expected.setdefault((key, topic), []).append(n)
    for (key, topic), numbers in sorted(expected.items()):
        have = [n for t, n in found.journal.get(key, []) if t == topic]
        if have != numbers:
            wrong.append(f"{key}/{topic}: state has {_difference(numbers, have)}")
        emitted = [int(text.partition(":")[2]) for k, text in found.emitted if k == key and text.partition(":")[0] == topic]
        if emitted != numbers:
            wrong.append(f"{key}/{topic}: emitted {_difference(numbers, emitted)}")
    strangers = set(found.journal) - {key for key, _ in expected}
    if strangers:
        wrong.append(f"state of keys that were never sent: {sorted(strangers)}")
    for key, rows in found.journal.items():
        emitted_order = [tuple(text.split(":")) for k, text in found.emitted if k == key]
        if [(t, str(n)) for t, n in rows] != emitted_order:
            wrong.append(f"{key}: emitted in another order than committed")
    wrong.extend(_wrong_sums(sent, found, share_every))
    if len(set(found.ids)) != len(found.ids):
        wrong.append("two emitted events have one id")
    return wrong


def _wrong_sums(sent: Sequence[Sent], found: Outcome, share_every: int) -> list[str]:
    wrong: list[str] = []
    totals: dict[str, int] = {}
    for _, key, n in sent:
        totals[group_of(key)] = totals.get(group_of(key), 0) + n + 1
    counts: dict[str, int] = {}
    for _, key, _ in (one for one in sent if one.n % share_every == 0):
        counts[group_of(key)] = counts.get(group_of(key), 0) + 1
    if dict(found.totals) != totals:
        wrong.append(f"additions: expected {totals}, found {dict(found.totals)}")
    if dict(found.shared) != counts:
        wrong.append(f"shared rows: expected {counts}, found {dict(found.shared)}")
    return wrong


def _difference(expected: Sequence[int], found: Sequence[int]) -> str:
    missing = sorted(set(expected) - set(found))
    twice = sorted({n for n in found if found.count(n) > 1})
    if missing or twice:
        return f"missing {missing[:10]}, more than once {twice[:10]}"
    at = next(i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b)
    return f"another order: {list(found[max(0, at - 2) : at + 4])} at {at}"


def read_rows(rows: Mapping[str, bytes]) -> dict[str, object]:
    """Return rows of one-element keys with their values decoded."""
    return {json.loads(key)[0]: json.loads(value) for key, value in rows.items()}
