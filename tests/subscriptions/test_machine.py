"""Whatever happens to a subscription, the end is as if one event had followed the other: a state machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from tests.subscriptions.machine import SubscriptionMachine
from tests.subscriptions.machine_bugs import BUGS

from everlog.errors import EverlogError

IS_SOAK = os.environ.get("MACHINE_SOAK") == "1"
"""Other examples each time, and many of them, for `make soak`; otherwise the same few each time."""

SHORT = settings(
    max_examples=50,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
LONG = settings(SHORT, max_examples=3_000, stateful_step_count=60, derandomize=False, print_blob=True)
MOST_EXAMPLES = 600
"""Within so many examples each planted bug has to be found."""


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """The faults are many, and each is reported as it should be."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_whatever_happens_to_two_processes_the_end_is_as_the_model_has_it() -> None:
    run_state_machine_as_test(SubscriptionMachine, settings=LONG if IS_SOAK else SHORT)


# ---- positive controls: each of these bugs must be found ----


class Narrow(SubscriptionMachine):
    """Without what none of the planted bugs needs, so that they are found sooner."""

    key = deploy = stop = skip = begin_an_outage = let_retention_delete = publish_what_nobody_can_read = None  # type: ignore[assignment]


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[name](monkeypatch)
    unshrunk = settings(SHORT, max_examples=MOST_EXAMPLES, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises((AssertionError, EverlogError)):
        run_state_machine_as_test(Narrow, settings=unshrunk)
