"""A sync failed, its process is gone, and another one has gone on: what is told from then on stands on what is on the disk."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from tests.faults.image import Machine
from tests.faults.power_judge import Knowledge, faults_of
from tests.faults.power_run import record_a_failed_sync
from tests.faults.vfs import Kind, steps_of

ROUNDS = 3
"""Each with another answer to what of the failed sync has reached the disk."""
STEPS = 26


async def test_a_power_cut_behind_a_failed_sync_finds_a_sound_log_with_all_that_was_acknowledged(tmp_path: Path) -> None:
    steps = list(steps_of(await record_a_failed_sync(tmp_path, 1)))
    (failed,) = [at for at, step in enumerate(steps) if step.kind is Kind.SYNC_FAILED]
    wrong: list[str] = []
    for seed in range(ROUNDS):
        machine, known = Machine(seed), Knowledge()
        for at, step in enumerate(steps[: failed + STEPS]):
            machine.apply(step)
            if step.kind is Kind.MARK:
                known.marks.append(step.mark())
            if at < failed:
                continue
            known.acknowledged = dict(machine.acknowledged)
            with tempfile.TemporaryDirectory(dir=tmp_path) as name:
                machine.cut(Path(name), random.Random(at))
                wrong += [f"behind step {at}, round {seed}: {line}" for line in await faults_of(Path(name), known, run=False)]
    assert wrong == []
