"""Bugs that are seeded on purpose: each breaks one promise, and the judge has to catch it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple


class Bug(NamedTuple):
    """One bug.

    Attributes:
        text: What it does wrong.
        seed: Puts it into this process, which has a role, with dice of its own.
    """

    text: str
    seed: Callable[[str, random.Random], None]


BUGS: Final[Mapping[str, Bug]] = {}
