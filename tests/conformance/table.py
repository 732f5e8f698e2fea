"""`python -m tests.conformance.table`: what each engine promises, in cases of the public suites, as the table in `docs/guarantees.md`.

Each number is a case that runs on a real engine in the same tests that check this table; one that fails, fails them.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from tests.conformance.adapters import LOGS
from tests.conformance.stores import STORES

import everlog.conformance.log as log_suite
import everlog.conformance.store as store_suite
from everlog.conformance.cases import Case

PAGE: Final = Path(__file__).parents[2] / "docs" / "guarantees.md"
BEGIN: Final = "<!-- made by python -m tests.conformance.table -->"
END: Final = "<!-- end -->"
_NAMES: Final = {"memory": "in memory", "sqlite": "files (SQLite)", "postgres": "PostgreSQL"}


def table() -> str:
    """Return both tables."""
    return "\n\n".join(
        [
            _of("log", log_suite.cases(), LOGS),
            _of("store", store_suite.cases(), STORES),
        ]
    )


def _of(port: str, cases: Sequence[Case[Any]], engines: Mapping[str, Callable[[Path], AbstractContextManager[Any]]]) -> str:
    features = {name: asyncio.run(_features(engine)) for name, engine in engines.items()}
    lines = [
        f"| Cases of the suite of a {port} | {' | '.join(_NAMES[name] for name in engines)} |",
        f"|---|{'---|' * len(engines)}",
    ]
    for module, group in groupby(cases, key=lambda one: sys.modules[one.run.__module__]):
        of_module = list(group)
        kept = [[one for one in of_module if one.applies_to(features[name])] for name in engines]
        numbers = [f"{len(one)}" if len(one) == len(of_module) else f"{len(one)} of {len(of_module)}" for one in kept]
        lines.append(f"| {_title(module)} | {' | '.join(numbers)} |")
    names = list(dict.fromkeys(name for one in features.values() for name in one.__struct_fields__))
    for name in names:
        said = [getattr(features[engine], name) for engine in engines]
        lines.append(f"| `{name}` | {' | '.join(_shown(value) for value in said)} |")
    return "\n".join(lines)


def _title(module: ModuleType) -> str:
    return (module.__doc__ or "").splitlines()[0].rstrip(".")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


async def _features(engine: Callable[[Path], AbstractContextManager[Any]]) -> Any:
    with tempfile.TemporaryDirectory() as folder, engine(Path(folder)) as harness:
        opened = await harness.open()
        try:
            return opened.features
        finally:
            await opened.aclose()


def page_with(made: str) -> str:
    """Return the page with its tables made anew."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{made}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page_with(table()))
