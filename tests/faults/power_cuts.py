"""Cuts the power at chosen points of a trace, and has each image judged."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

from tests.faults.image import Machine
from tests.faults.power_judge import Knowledge, faults_of
from tests.faults.power_shop import LOG, STORE
from tests.faults.vfs import Kind, Step, steps_of

_NEAR: Final = 60
"""So many steps behind an event, it is still going on."""


class Moment(Enum):
    """What is going on when the power goes."""

    BEFORE_SYNC = "right before a sync"
    AFTER_SYNC = "right after a sync"
    COMMIT = "inside a group's commit"
    CHECKPOINT = "inside a checkpoint"
    TRUNCATION = "behind a truncation or a deletion of a file"
    TOLD = "right after somebody was told"
    RETENTION = "while retention deletes"
    TAKEOVER = "behind the death of a process"


class Verdict(NamedTuple):
    """What was found in one image."""

    step: int
    moment: Moment
    image: int
    """The seed of the image: with it and the step, the same image is made of the same trace."""
    faults: Sequence[str]

    def __str__(self) -> str:
        return f"cut before step {self.step} ({self.moment.value}), image {self.image}:\n  " + "\n  ".join(self.faults[:6])


def made_by(steps: Sequence[Step]) -> int:
    """Return the step before which all files are made; the cuts before it are not chosen: each of them is tried, see `test_power_creation`."""
    first = {name: next((at for at, step in enumerate(steps) if step.name == f"{name}-bell"), 0) for name in (LOG, STORE)}
    return max(first.values()) + 1


def told_behind_a_failed_sync(steps: Sequence[Step]) -> int:
    """Return the step behind the first thing that was told after a sync had failed."""
    failed = next(at for at, step in enumerate(steps) if step.kind is Kind.SYNC_FAILED)
    return next(at for at in range(failed, len(steps)) if steps[at].kind is Kind.MARK and steps[at].mark()["what"] == "told") + 1


def moments_of(steps: Sequence[Step], begin: int) -> Mapping[Moment, Sequence[int]]:
    """Return the steps from `begin` on before which the power can be cut, by what is going on there."""
    found: dict[Moment, list[int]] = {moment: [] for moment in Moment}
    since: dict[str, int] = {}
    for at in range(begin, len(steps)):
        last = steps[at - 1]
        if last.kind is Kind.MARK and last.mark()["what"] in ("trim", "killed"):
            since[last.mark()["what"]] = at
        for moment in _moments(last, steps[at]):
            found[moment].append(at)
        if at - since.get("trim", at - _NEAR) < _NEAR and last.name.startswith(LOG):
            found[Moment.RETENTION].append(at)
        if at - since.get("killed", at - _NEAR) < _NEAR:
            found[Moment.TAKEOVER].append(at)
    return found


def _moments(last: Step, next_: Step) -> Iterator[Moment]:
    if next_.kind is Kind.SYNC:
        yield Moment.BEFORE_SYNC
    match last.kind:
        case Kind.SYNC:
            yield Moment.AFTER_SYNC
        case Kind.WRITE if last.name.endswith("-wal"):
            yield Moment.COMMIT
        case Kind.WRITE if last.name in (LOG, STORE):
            yield Moment.CHECKPOINT
        case Kind.TRUNCATE | Kind.DELETE:
            yield Moment.TRUNCATION
        case Kind.BELL | Kind.MARK:
            yield Moment.TOLD
        case _:
            pass


def chosen(steps: Sequence[Step], count: int, dice: random.Random, *, begin: int) -> Sequence[tuple[int, Moment]]:
    """Return so many cuts, each moment met as often as another, in the order of the trace."""
    places = {moment: found for moment, found in moments_of(steps, begin).items() if found}
    turn = list(places)
    cuts = [(dice.choice(places[moment]), moment) for moment in (turn[number % len(turn)] for number in range(count))]
    return sorted(cuts, key=lambda cut: cut[0])


async def judged(
    trace: Path,
    *,
    seed: int,
    images: int,
    run_every: int = 0,
    begin: Callable[[Sequence[Step]], int] = made_by,
    enough: Callable[[Sequence[Verdict]], bool] = lambda _: False,
) -> list[Verdict]:
    """Cut, open and judge; return a verdict for every image.

    Args:
        trace: What was recorded.
        seed: Chooses cuts and what is left of what was not synced.
        images: How many.
        run_every: Every so many, a worker goes on from there until it has handled everything; 0: never.
        begin: Tells before which step the first cut may be.
        enough: Tells when to stop before.
    """
    steps = list(steps_of(trace))
    dice = random.Random(seed)
    machine, known = Machine(seed), Knowledge()
    verdicts: list[Verdict] = []
    done = 0
    for number, (step, moment) in enumerate(chosen(steps, images, dice, begin=begin(steps))):
        for one in steps[done:step]:
            machine.apply(one)
            if one.kind is Kind.MARK:
                known.marks.append(one.mark())
        done = step
        known.acknowledged = dict(machine.acknowledged)
        image = seed * 1_000_000 + number
        with tempfile.TemporaryDirectory(dir=trace.parent, prefix="image-") as name:
            folder = Path(name)
            machine.cut(folder, random.Random(image))
            run = bool(run_every) and number % run_every == 0
            verdicts.append(Verdict(step, moment, image, await faults_of(folder, known, run=run)))
        if enough(verdicts):
            break
    return verdicts
