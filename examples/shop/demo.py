"""make demo: the shop as separate processes, three acts, and a summary that is checked against the input file.

It exits with 1, and says what, if the numbers do not add up. Everything it shows comes from the log; everything it checks comes from the
log, the stores, and the side file in which inventory notes an order before it does anything else.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from contracts import OrderPlaced
from demo_acts import LATE, SERVICES, Demo, DemoFailed, Plan, choose_poison
from demo_checks import Evidence, Interrupted, balance, check_all, interrupted
from demo_history import History, read_history, read_state
from demo_processes import EVERLOG, CommandFailed
from demo_view import LiveView, Picture, PlainView, Service
from everlog import App, Client
from files import read_articles, read_orders
from forecast import demands, expected, forecast
from inventory import inventory, stock
from loyalty import loyalty, points
from world import DEFAULT_SEED, LOOSE, opening_stock, with_bursts

ROOT: Final = Path(__file__).parents[2]
FULL: Final = Plan(orders=None, speed=240.0, bursts=12, dead_s=3.0)
FAST: Final = Plan(orders=1_500, speed=250.0, bursts=4, dead_s=1.0)

watcher = App("watcher")


async def play(demo: Demo) -> bool:
    """Play the acts, check what they left, print the summary; tells whether all is well."""
    began_s = time.monotonic()
    async with watcher.connect(demo.settings) as client:
        with demo.view:
            watches = [asyncio.create_task(watch) for watch in (demo.watch_facts(client), demo.watch_lags(client), demo.draw())]
            try:
                await demo.open_shop()
                kill = await demo.kill_inventory(client)
                flowed = await demo.poison_and_cure()
                joined = await demo.join_late()
                await demo.close_shop()
            finally:
                for watch in watches:
                    watch.cancel()
                await asyncio.gather(*watches, return_exceptions=True)
        evidence = await collect(demo, client)
    after = interrupted(kill.noted, kill.committed, demo.noted()[len(kill.noted) :], evidence.history)
    faults = [*check_all(evidence), *after.faults()]
    if not flowed:
        faults.append("nobody was served while the poison order blocked its customer")
    print_summary(demo, evidence, after, flowed, joined)
    print(f"\nIt took {time.monotonic() - began_s:.0f} s. ", end="")
    if faults:
        print("The numbers do not add up:", *faults, sep="\n  ")
    else:
        print("Every number above was checked against the input file: they add up.")
    return not faults


async def collect(demo: Demo, client: Client) -> Evidence:
    """Read what the run left behind."""
    return Evidence(
        demo.orders,
        {article.sku: article.department for article in read_articles()},
        await read_history(client),
        await read_state(inventory, stock, demo.settings),
        await read_state(loyalty, points, demo.settings),
        await read_state(forecast, demands, demo.settings),
        [msgspec.json.decode(line, type=dict[str, str]) for line in (demo.folder / "mails.jsonl").read_bytes().splitlines()],
    )


def print_summary(demo: Demo, evidence: Evidence, after: Interrupted, flowed: int, joined: str) -> None:
    history = evidence.history
    ours = sum(fact.order.id.startswith("burst-") for fact in demo.orders)
    caught = {fact.order.id.split("-")[1] for fact in history.suspected if fact.order.id.startswith("burst-")}
    bursts = {fact.order.id.split("-")[1] for fact in demo.orders if fact.order.id.startswith("burst-")}
    came, went = balance(history)
    pieces = [shelf for shelf in evidence.stock if evidence.departments[str(shelf[1])] not in LOOSE]
    opening = sum(opening_stock(str(branch), str(sku), evidence.departments[str(sku)]) for branch, sku in pieces)
    (department, hour), demand = max(evidence.demand.items(), key=lambda item: expected(item[1]))
    print(f"""
input      {len(demo.orders) - ours:,} real orders, and {ours} of ours in {len(bursts)} fraud bursts
decided    {len(history.suspected) + len(history.answered):,}, each exactly once: {counts(history)}
stock      {len(pieces):,} shelves: {opening:,} pieces at the opening + {sum(came[shelf] for shelf in pieces):,} delivered
           - {sum(went[shelf] for shelf in pieces):,} reserved = {sum(evidence.stock[shelf] for shelf in pieces):,} left; conserved on each shelf, as on
           {len(evidence.stock) - len(pieces):,} shelves of goods that are not sold by piece
act 1      inventory killed with {len(after.in_flight)} in flight, {len(after.run_again)} run again, {len(after.lost)} lost, {len(after.doubled)} doubled
act 2      one customer waited for an article; {flowed:,} orders of others were decided meanwhile
act 3      loyalty joined late and caught up: {joined}
fraud      {len(caught)} of {len(bursts)} bursts noticed
notify     {len(evidence.mails):,} mails, one for each decision
forecast   most is asked for at {hour}:00 in {department}: {expected(demand):.0f} lines tomorrow

Ours, and made from a seed: opening stock, distances between branches, fraud bursts. All else is real.

Look at what it left behind:
  cd {shlex.quote(str(demo.folder))}
  export PATH={shlex.quote(os.path.normpath(EVERLOG.parent))}:$PATH PYTHONPATH={shlex.quote(str(Path(__file__).parent))}
  everlog status
  everlog topics
  everlog tail --from beginning --limit 5 --topic shop.reservations
  everlog parked list inventory
  everlog verify""")


def counts(history: History) -> str:
    return f"{len(history.reserved):,} reserved, {len(history.refused):,} refused, {len(history.suspected):,} suspected"


# ---- starting and ending ----


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The shop: real orders, three acts, checked numbers.")
    parser.add_argument("--orders", type=int, help="how many real orders; all by default")
    parser.add_argument("--speed", type=float, help="orders a second")
    parser.add_argument("--seed", default=DEFAULT_SEED, help="of what is ours: stock, distances, fraud bursts")
    parser.add_argument("--fast", action="store_true", help="a short run with all three acts")
    parser.add_argument("--plain", action="store_true", help="lines instead of a table, also in a terminal")
    parser.add_argument("--folder", type=Path, help="where to leave everything; build/demo-TIME by default")
    return parser.parse_args(words)


async def run(options: argparse.Namespace) -> bool:
    """Prepare the run that the options ask for, and play it."""
    plan = FAST if options.fast else FULL
    plan = replace(plan, orders=options.orders or plan.orders, speed=options.speed or plan.speed)
    orders: Sequence[OrderPlaced] = with_bursts(read_orders(plan.orders), plan.bursts)
    poison = choose_poison(orders, plan.poison_between)
    folder: Path = (options.folder or ROOT / "build" / time.strftime("demo-%Y%m%d-%H%M%S")).resolve()
    (folder / ".everlog").mkdir(parents=True)
    picture = Picture(len(orders), {name: Service() for name in (*SERVICES, LATE)})
    view = PlainView(picture) if options.plain or not sys.stdout.isatty() else LiveView(picture)
    demo = Demo(plan, folder, orders, poison, view, picture)
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await play(demo)
    finally:
        demo.processes.close()


def main() -> int:
    options = arguments()
    os.environ["SHOP_SEED"] = options.seed
    try:
        return 0 if asyncio.run(run(options)) else 1
    except (DemoFailed, CommandFailed) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\nStopped; its processes are gone.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
