"""The conformance suite of the Store port: every promise of `everlog.store`, as a case whose name is the promise."""

from __future__ import annotations

from collections.abc import Sequence

from everlog.conformance.cases import Case, cases_of
from everlog.conformance.store import (
    attempting,
    changing,
    copying,
    holding,
    lasting,
    naming,
    owning,
    passing,
    progressing,
    reincarnating,
    repeating,
    sending,
    stating,
)
from everlog.conformance.store.harness import StoreUnderTest

__all__ = ["StoreUnderTest", "cases"]


def cases() -> Sequence[Case[StoreUnderTest]]:
    """Return every case. Run those that `Case.applies_to(store.features)`, each with a fresh `StoreUnderTest`."""
    modules = (
        naming,
        owning,
        attempting,
        changing,
        progressing,
        holding,
        passing,
        sending,
        stating,
        lasting,
        copying,
        reincarnating,
        repeating,
    )
    return [case for module in modules for case in cases_of(module)]
