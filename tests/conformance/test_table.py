"""The tables of the page on guarantees are those that the suites give."""

from __future__ import annotations

from tests.conformance.table import PAGE, page_with, table


def test_the_page_shows_what_the_suites_give() -> None:
    assert PAGE.read_text() == page_with(table()), "make it anew: python -m tests.conformance.table"
