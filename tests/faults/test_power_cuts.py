"""The power is cut while the shop is at work: each image opens by itself, nothing that was acknowledged is missing, nothing is there twice.

More images, and another trace: `POWER_IMAGES=5000 POWER_SEED=7 pytest tests/faults/test_power_cuts.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.faults.power_controls import CONTROLS, NO_BUG, PowerControl
from tests.faults.power_cuts import Moment, judged
from tests.faults.power_run import record

IMAGES = int(os.environ.get("POWER_IMAGES", "300"))
SEED = int(os.environ.get("POWER_SEED", "1"))
RUN_EVERY = 10


async def test_whenever_the_power_goes_nothing_acknowledged_is_lost_and_work_goes_on_by_itself(tmp_path: Path) -> None:
    verdicts = await judged(await record(tmp_path, SEED), seed=SEED, images=IMAGES, run_every=RUN_EVERY)
    faulty = [str(verdict) for verdict in verdicts if verdict.faults]
    assert faulty == [], f"seed {SEED}, of {len(verdicts)} images: {len(faulty)}"
    assert {verdict.moment for verdict in verdicts} == set(Moment)


# ---- positive controls ----


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.bug)
async def test_a_seeded_bug_is_caught(control: PowerControl) -> None:
    assert await control.run() != []


async def test_without_a_bug_the_trace_of_a_failed_sync_is_sound_where_something_was_told_behind_it() -> None:
    (control,) = [one for one in CONTROLS if one.bug == "builds on what was not synced"]
    assert await control.run(bug=NO_BUG) == []
