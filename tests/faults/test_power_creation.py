"""The power is cut at every step while a log and a store are made: nothing is in them yet, and the next start makes them."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from tests.faults.image import Machine
from tests.faults.power_cuts import made_by
from tests.faults.power_judge import Knowledge, faults_of
from tests.faults.power_run import record_quickly
from tests.faults.vfs import steps_of

IMAGES_EACH = 1


async def test_a_file_that_was_being_made_is_made_by_the_next_start(tmp_path: Path) -> None:
    steps = list(steps_of(await record_quickly(tmp_path, 1, bug="none", events=10)))
    machine, wrong = Machine(1), list[str]()
    made = made_by(steps)
    assert made > 50
    for at, step in enumerate(steps[:made]):
        machine.apply(step)
        for image in range(IMAGES_EACH):
            with tempfile.TemporaryDirectory(dir=tmp_path) as name:
                machine.cut(Path(name), random.Random(at * IMAGES_EACH + image))
                wrong += [
                    f"behind step {at}, image {image}: {line}" for line in await faults_of(Path(name), Knowledge(), run=False)
                ]
    assert wrong == []
