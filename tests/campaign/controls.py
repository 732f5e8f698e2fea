"""Runs every seeded bug in a short campaign, or under power cuts, and says what caught it: `python -m tests.campaign.controls [NAME…]`.

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
from tests.campaign.campaign import Campaign
from tests.campaign.plan import Plan
from tests.faults.power_controls import CONTROLS as POWER_CONTROLS

from everlog.conformance.judge import Fault

TRIES: Final = 5
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


class Line(NamedTuple):
    """What is said of one bug."""

    by: str
    """Empty where nothing caught it."""
    example: str


async def _of_the_processes(name: str) -> Line:
    caught = await control(name)
    rules = Counter(fault.rule.value for fault in caught.faults)
    by = ", ".join(f"{rule} ({count})" for rule, count in rules.items())
    return Line(by, caught.faults[0].text if caught.faults else BUGS[name].text)


async def _of_the_power_cuts(name: str) -> Line:
    (control_,) = [one for one in POWER_CONTROLS if one.name == name]
    found = await control_.run()
    return Line(f"power cuts ({len(found)} images)" if found else "", found[0].splitlines()[0] if found else name)


async def _run(names: Sequence[str]) -> int:
    console = Console(width=170)
    table = Table("seeded bug", "caught by", "for example")
    missed = 0
    for name in names:
        line = await (_of_the_processes(name) if name in BUGS else _of_the_power_cuts(name))
        missed += not line.by
        table.add_row(name, line.by or "NOTHING", line.example)
        console.print(f"{'caught' if line.by else 'MISSED'}: {name}")
    console.print(table)
    console.print(f"{len(names) - missed} of {len(names)} seeded bugs were caught")
    return 1 if missed else 0


def main(arguments: Sequence[str]) -> int:
    known = [*BUGS, *[one.name for one in POWER_CONTROLS]]
    unknown = [name for name in arguments if name not in known]
    if unknown:
        sys.stderr.write(f"expected names of seeded bugs, found {unknown}: there are {', '.join(known)}\n")
        return 2
    return asyncio.run(_run(arguments or known))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
