"""Members of a store: what a process tells of itself, and which of several may work on a subscription."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from everlog.drivers.process import Process

VERSION_BITS: Final = 40
"""A member numbers its units within 2⁴⁰ of its own."""


@dataclass(frozen=True, slots=True)
class Membership:
    """What a member tells the store of itself."""

    number: int
    process: Process
    handles: Mapping[str, Sequence[str]]
    """Subscription → types."""
    paused: Mapping[str, str] = field(default_factory=dict[str, str])
    """Subscription → why it is paused there."""


def able(types_of: Mapping[int, Sequence[str]]) -> Sequence[int]:
    """Return the members that may work on a subscription, ascending.

    Those whose types no other member's exceed; where such members differ, those that agree with the newest of them.

    Args:
        types_of: What each member handles.
    """
    sets = {number: frozenset(types) for number, types in types_of.items()}
    largest = [number for number, own in sets.items() if not any(own < other for other in sets.values())]
    return sorted(number for number in sets if sets[number] == sets[max(largest)])
