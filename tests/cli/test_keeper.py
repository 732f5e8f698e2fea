"""What follows when a worker ends."""

from __future__ import annotations

import asyncio

import pytest
from tests.cli.shop import PATIENCE_S

from everlog.cli.keeper import STEADY_S, Keeper, delay_s, ends_in_a_row, is_hopeless
from everlog.cli.worker import Work


@pytest.mark.parametrize(
    ("ends", "seconds"), [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (5, 8.0), (6, 16.0), (7, 30.0), (8, 30.0), (100_000, 30.0)]
)
def test_each_end_in_a_row_doubles_the_wait_up_to_half_a_minute(ends: int, seconds: float) -> None:
    assert delay_s(ends) == seconds


@pytest.mark.parametrize(
    ("before", "lived_s", "after"),
    [
        (0, 0.1, 1),
        (1, 0.1, 2),
        (7, STEADY_S - 0.1, 8),
        (7, STEADY_S, 1),  # it was well: this is another story
        (0, STEADY_S, 1),
    ],
)
def test_a_worker_that_has_lived_long_begins_anew(before: int, lived_s: float, after: int) -> None:
    assert ends_in_a_row(before, lived_s=lived_s) == after


@pytest.mark.parametrize(
    ("code", "has_run", "awaits_changes", "hopeless"),
    [
        (4, False, False, True),
        (2, False, False, True),
        (1, False, False, False),  # a server that is not there yet
        (0, False, False, False),
        (-9, False, False, False),
        (4, True, False, False),  # the others run still
        (2, True, False, False),
        (1, False, True, True),  # it waits for a change
        (4, False, True, True),
        (-9, False, True, False),
        (0, False, True, False),
        (1, True, True, False),
    ],
)
def test_starting_again_is_given_up_where_it_cannot_help(code: int, has_run: bool, awaits_changes: bool, hopeless: bool) -> None:
    assert is_hopeless(code, has_run=has_run, awaits_changes=awaits_changes) is hopeless


async def test_a_worker_that_the_system_does_not_start_is_tried_again_until_it_is_stopped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    keeper = Keeper(1, Work(["/nowhere"], 1.0, 1.0), introduces=True, awaits_changes=False, on_hopeless=lambda _: None)
    async with asyncio.timeout(PATIENCE_S):
        keeping = asyncio.create_task(keeper.keep())
        while len(caplog.messages) < 2:  # noqa: ASYNC110 nothing else tells of a line
            await asyncio.sleep(0.01)
        keeper.stop()
        keeper.kill()
        await keeping
    assert [text.partition(" (")[0] for text in caplog.messages] == ["worker 1 cannot be started"] * 2
    assert [text.rpartition(": ")[2] for text in caplog.messages] == ["starting again in 0.5 s", "starting again in 1 s"]
