"""Every test that `docs/guarantees.md` names as a proof exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "guarantees.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| **")]
NAMED = re.findall(r"\]\((\.\./[^)]+)\): `(test_\w+)`", PAGE)


def test_each_promise_says_what_it_rests_on_what_proves_it_and_what_it_leaves_out() -> None:
    assert len(ROWS) > 10
    for row in ROWS:
        promise, rests_on, proof, limits = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert promise, row
        assert rests_on, row
        assert "](../" in proof, row
        assert limits, row


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", PAGE))))
def test_each_link_leads_somewhere(target: str) -> None:
    assert (DOCS / target).exists()


@pytest.mark.parametrize(("target", "name"), sorted(set(NAMED)))
def test_each_test_that_is_named_is_in_its_file(target: str, name: str) -> None:
    assert re.search(rf"def {name}\(", (DOCS / target).read_text())
