"""Every store keeps every promise of the public suite that its features make."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conformance.stores import STORES

from everlog.conformance.cases import Case
from everlog.conformance.store import StoreUnderTest, cases


@pytest.mark.parametrize("adapter", STORES)
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
async def test_the_store_keeps_the_promise(case: Case[StoreUnderTest], adapter: str, tmp_path: Path) -> None:
    with STORES[adapter](tmp_path) as harness:
        store = await harness.open()
        features = store.features
        await store.aclose()
        if not case.applies_to(features):
            pytest.skip(f"{adapter} does not claim {case.needs}")
        await case(harness)
