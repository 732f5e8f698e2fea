"""The conformance suite of the Log port: every promise of `everlog.log`, as a case whose name is the promise."""

from __future__ import annotations

from collections.abc import Sequence

from everlog.conformance.cases import Case, cases_of
from everlog.conformance.log import (
    appending,
    copying,
    history,
    keys,
    numbering,
    once,
    reading,
    reopening,
    retention,
    sharing,
    topics,
)
from everlog.conformance.log.harness import LogUnderTest

__all__ = ["LogUnderTest", "cases"]


def cases() -> Sequence[Case[LogUnderTest]]:
    """Return every case. Run those that `Case.applies_to(log.features)`, each with a fresh `LogUnderTest`."""
    modules = (topics, keys, appending, numbering, once, reading, history, retention, reopening, sharing, copying)
    return [case for module in modules for case in cases_of(module)]
