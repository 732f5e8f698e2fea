"""Every log keeps every promise of the public suite that its features make."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conformance.adapters import LOGS

from everlog.conformance.cases import Case
from everlog.conformance.log import LogUnderTest, cases


@pytest.mark.parametrize("adapter", LOGS)
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
async def test_the_log_keeps_the_promise(case: Case[LogUnderTest], adapter: str, tmp_path: Path) -> None:
    with LOGS[adapter](tmp_path) as harness:
        log = await harness.open()
        features = log.features
        await log.aclose()
        if not case.applies_to(features):
            pytest.skip(f"{adapter} does not claim {case.needs}")
        await case(harness)


def test_the_suite_has_no_two_cases_of_one_name() -> None:
    names = [case.name for case in cases()]
    assert len(names) == len(set(names))
    assert len(names) >= 70  # a module that is left out of `cases()` is not noticed otherwise
