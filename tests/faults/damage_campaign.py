"""Fault after fault on one file, each on a fresh copy, and what may be found afterwards: what is right, or an error that says what to do."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from tests.faults import damage_log, damage_store
from tests.faults.damage_facts import Facts, Healthy, laid_out
from tests.faults.damage_faults import Fault

from everlog.errors import EverlogError, FileError

HANGS_S: Final = 10.0
"""Real seconds: looking at a file takes some milliseconds."""
_AGAIN_EVERY: Final = 4
"""Of so many faults one has its file opened once more."""
_PLACE: Final = re.compile(r"log\.db|shop\.db|chunk at offset \d+ of [\w.]+/\d+|of [\w.]+/\d+")
_ADVICE: Final = re.compile(r"[Rr]estore|upgrade|choose|remove|publish its events")


class Subject(NamedTuple):
    """What is damaged, and how it is looked at."""

    make: Callable[[Path], Awaitable[Mapping[str, Healthy]]]
    look: Callable[[Path], Awaitable[Facts]]
    again: Callable[[Path, Facts], Awaitable[None]]
    written: str
    """The name of what was written behind the damage."""


SUBJECTS: Final[Mapping[str, Subject]] = {
    "log": Subject(damage_log.healthy, damage_log.look, damage_log.look_again, "append"),
    "store": Subject(damage_store.healthy, damage_store.look, damage_store.look_again, "commit"),
}
_WRITES: Final = {"append", "append again", "append, later", "registered", "commit", "commit, later", "close"}
"""What changes the file, among what is looked for."""


@dataclass
class Campaign:
    """What came of faults.

    Attributes:
        breaches: What was not allowed, a line each, with the fault.
        noticed: How often a fault in a structure was noticed where.
    """

    breaches: list[str] = field(default_factory=list[str])
    noticed: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])


async def campaign(subject: Subject, healthy: Healthy, faults: Iterable[Fault], folder: Path) -> Campaign:
    """Look at the file after each fault, and compare with what is found without."""
    laid_out(healthy.files, folder, healthy.name)
    truth = await subject.look(folder)
    await subject.again(folder, truth)
    assert not truth.errors, f"the healthy file cannot be read: {truth.errors}"
    assert not truth.verified
    found = Campaign()
    for number, fault in enumerate(faults):
        laid_out(fault.files, folder, healthy.name)
        facts = Facts()
        try:
            async with asyncio.timeout(HANGS_S):
                facts = await subject.look(folder)
                if number % _AGAIN_EVERY == 0 and _is_value(facts.read.get(subject.written)):
                    await subject.again(folder, facts)
            breaches = list(judged(facts, truth))
        except TimeoutError:
            breaches = ["it hangs"]
        except Exception as error:
            breaches = [f"raised {type(error).__module__}.{type(error).__name__}: {error}"]
        found.noticed[
            fault.structure, "not at all" if any(": expected" in breach for breach in breaches) else _noticed(facts)
        ] += 1
        found.breaches.extend(f"{fault.structure}, {fault.what}: {breach}" for breach in breaches)
    return found


def judged(facts: Facts, truth: Facts) -> Iterator[str]:
    """Yield what is not allowed.

    Each thing asked for is right, or is refused with an error that names file, damage and remedy; one that cannot be read says nothing about
    the others. Where reading met damage of the file, `verify` of the port is not silent; chunks are for `everlog verify`, which reads them.
    """
    for name, error in facts.errors.items():
        yield from _judged_error(name, error)
    if facts.at_open is not None:
        return
    for name, value in facts.read.items():
        if _is_value(value) and value != truth.read[name]:
            yield f"{name}: expected {_shown(truth.read[name])}, found {_shown(value)}"
    left_out = truth.read.keys() - facts.read.keys() - _WRITES
    if left_out and not facts.errors:
        yield f"nothing was found of {sorted(left_out)}"
    below = [error for name, error in facts.errors.items() if name not in _WRITES and not str(error).startswith("chunk at")]
    if below and not facts.verified:
        yield f"`verify` finds nothing, and reading found {below[0]}"


def _judged_error(name: str, error: EverlogError) -> Iterator[str]:
    if not isinstance(error, FileError):
        yield f"{name}: {type(error).__name__} is no error of a file: {error}"
    if not _PLACE.search(str(error)):
        yield f"{name}: the error does not say where: {error}"
    if not _ADVICE.search(str(error)):
        yield f"{name}: the error does not say what to do: {error}"


def _is_value(found: object) -> bool:
    return found is not None and not isinstance(found, EverlogError)


def _noticed(facts: Facts) -> str:
    if facts.at_open is not None:
        return "at open"
    if facts.errors.keys() - _WRITES:
        return "on reading"
    if facts.verified:
        return "by verify"
    return "on writing" if facts.errors else "harmless"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}…"


def dice_of(seed: int, *names: str) -> random.Random:
    """Return dice that fall alike for the same seed and names."""
    return random.Random(f"{seed} {' '.join(names)}")
