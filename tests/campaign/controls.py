"""Runs every seeded bug in a short campaign and says what caught it: `python -m tests.campaign.controls [NAME…]`.

A bug that gets through is a hole in the judge, and ends this with code 1.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Console
from rich.table import Table
from tests.campaign.bugs import BUGS
from tests.campaign.campaign import Campaign, Plan

from everlog.conformance.judge import Fault

TRIES: Final = 3
"""A bug is given so many campaigns to show itself: when a process is stopped or killed is decided by dice."""


class Caught(NamedTuple):
    """What came of a bug."""

    name: str
    faults: Sequence[Fault]
    """Those of the rules that the bug breaks; none where it got through."""
    tries: int


async def control(name: str) -> Caught:
    """Run campaigns with one bug until the judge names a rule that it breaks."""
    bug = BUGS[name]
    for number in range(TRIES):
        plan = Plan(bug.seconds, 7 + number, rate=bug.rate, pause_s=0.4, faults=bug.faults, bug=name, kept_behind=bug.kept_behind)
        with tempfile.TemporaryDirectory(prefix="everlog-control-") as folder:
            result = await Campaign(Path(folder), plan).run()
        found = [fault for fault in result.faults if fault.rule in bug.rules]
        if found:
            return Caught(name, found, number + 1)
    return Caught(name, (), TRIES)


async def _run(names: Sequence[str]) -> int:
    console = Console(width=170)
    table = Table("seeded bug", "caught by", "tries", "for example")
    missed = 0
    for name in names:
        caught = await control(name)
        rules = Counter(fault.rule.value for fault in caught.faults)
        missed += not caught.faults
        shown = ", ".join(f"{rule} ({count})" for rule, count in rules.items()) or "NOTHING"
        table.add_row(name, shown, str(caught.tries), caught.faults[0].text if caught.faults else BUGS[name].text)
        console.print(f"{'caught' if caught.faults else 'MISSED'}: {name}")
    console.print(table)
    console.print(f"{len(names) - missed} of {len(names)} seeded bugs were caught")
    return 1 if missed else 0


def main(arguments: Sequence[str]) -> int:
    unknown = [name for name in arguments if name not in BUGS]
    if unknown:
        sys.stderr.write(f"expected names of seeded bugs, found {unknown}: there are {', '.join(BUGS)}\n")
        return 2
    return asyncio.run(_run(arguments or list(BUGS)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
