"""`python -m tests.campaign --minutes 30 --seed 7`: a long campaign, and a report of what it injected and survived."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from tests.campaign.campaign import Campaign
from tests.campaign.plan import Plan, Result
from tests.campaign.report import grown, show


def plan_of(arguments: Sequence[str]) -> Plan:
    """Return the plan that a command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="for how long faults are injected (30)")
    parser.add_argument("--seed", type=int, default=None, help="of all dice; the seed of a run is in its report")
    parser.add_argument("--rate", type=float, default=2_700.0, help="events published in a second; as many are emitted (2,700)")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two faults, about (1)")
    parser.add_argument("--keys", type=int, default=500, help="keys that are used in ten seconds (500)")
    parser.add_argument("--log-url", default="", help="where the log is; a file by default")
    parser.add_argument("--store-url", default="", help="where the stores are, with {app}; files by default")
    given = parser.parse_args(arguments)
    seed = given.seed if given.seed is not None else secrets.randbelow(1_000_000)
    # Named points are in the code of the files: elsewhere processes are killed at any.
    faults = {"kill": 4, "stop": 4, "join": 1, "leave": 1, "roll": 1} if given.log_url else None
    urls = {"log_url": given.log_url, "store_url": given.store_url}
    return Plan(given.minutes * 60, seed, rate=given.rate, pause_s=given.pause, keys=given.keys, faults=faults, **urls)


async def soak(plan: Plan) -> Result:
    """Run the campaign in a folder of its own, which stays if something breaks."""
    folder = Path(tempfile.mkdtemp(prefix="everlog-soak-"))
    result = await Campaign(folder, plan).run()
    if not result.faults:
        import shutil

        shutil.rmtree(folder)
    else:
        sys.stderr.write(f"log, stores and journals are in {folder}\n")
    return result


def main(arguments: Sequence[str]) -> int:
    console = Console(width=150)
    plan = plan_of(arguments)
    console.print(f"seed {plan.seed}: {plan.seconds / 60:g} minutes of faults …")
    result = asyncio.run(soak(plan))
    show(result, console)
    return 1 if result.faults or grown(result) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
