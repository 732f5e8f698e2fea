"""Poison in every form that `tests/processes/test_killers.py` does not have: its key waits, all others are handled, and mended it goes on in order."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.processes.killers import Job
from tests.processes.scene import Scene

from everlog.store import Cause

TRIES = 3
ENDED = 70
"""The exit code of a process with a handler that cannot be stopped."""
needs_limits = pytest.mark.skipif(sys.platform != "linux", reason="the system gives processes no limit of memory")


class PoisonScene(Scene):
    """Where the workers are those of `tests.faults.poison`."""

    async def start(self, *, wait: bool = False) -> Any:
        begin = asyncio.create_subprocess_exec

        async def poisoned(*words: str, **options: Any) -> Any:
            return await begin(
                *["tests.faults.poison" if word == "tests.processes.killers" else word for word in words], **options
            )

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio, "create_subprocess_exec", poisoned)
            return await super().start(wait=wait)


def with_poison(does: str) -> list[Job]:
    """Return events of many keys, a bad one between two others of its key, and some behind it."""
    before = [Job(f"k{number}", n) for n in range(3) for number in range(10)]
    behind = [Job(f"k{number}", n) for n in range(3, 6) for number in range(10)]
    return [*before, Job("bad", 0), Job("bad", 1, does), *behind, Job("bad", 2), Job("bad", 3)]


@pytest.mark.parametrize(
    ("kind", "does", "cause", "error", "most_deaths"),
    [
        ("async", "raises", Cause.FAILED, "ValueError: poison", 0),
        ("async", "hangs", Cause.FAILED, "ran past its time limit", 0),
        pytest.param("async", "eats", Cause.FAILED, "MemoryError", 0, marks=needs_limits),
        ("batch", "raises", Cause.FAILED, "ValueError: poison", 0),
        ("batch", "hangs", Cause.FAILED, "ran past its time limit", 0),
        ("batch", "sys.exit", Cause.FAILED, "called sys.exit", 0),
        pytest.param("batch", "eats", Cause.FAILED, "MemoryError", 0, marks=needs_limits),
        ("batch", "deaf", Cause.KILLED, "handle_all", 1 + 1 + 2 + TRIES - 1),
    ],
)
async def test_the_key_of_a_poisonous_event_waits_and_all_others_are_handled(
    tmp_path: Path, kind: str, does: str, cause: Cause, error: str, most_deaths: int
) -> None:
    async with PoisonScene(tmp_path, kind=kind, time_limit_s=0.5, most=4) as scene:
        await scene.publish(*with_poison(does))
        assert set(await scene.run(most_deaths=most_deaths)) <= {ENDED}
        (parked,) = await scene.store.parked()
        assert (parked.key, parked.first.cause, parked.first.attempts, parked.records) == ("bad", cause, TRIES, 3)
        assert error in parked.first.error
        handled = await scene.handled()
        assert handled == {"bad": [0], **{f"k{number}": list(range(6)) for number in range(10)}}
        assert await scene.faults() == []
        await scene.mend()
        assert await scene.store.parked() == []
        assert (await scene.handled())["bad"] == [0, 1, 2, 3]
        assert await scene.faults() == []


async def test_poison_that_is_passed_over_in_silence_is_seen(tmp_path: Path) -> None:
    async with PoisonScene(tmp_path, kind="batch", most=4, bug="forgives") as scene:
        await scene.publish(*with_poison("raises"))
        await scene.run(most_deaths=0)
        assert await scene.faults() != []
