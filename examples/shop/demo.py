"""make demo: the shop as separate processes, three acts, and a summary that is checked against the input file.

It exits with 1, and says what, if the numbers do not add up. Everything it shows comes from the log; everything it checks comes from the
log, the stores, and the side file in which inventory notes an order before it does anything else. In a terminal it takes keys.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Coroutine, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec

from contracts import ForecastScore
from demo_acts import LATE, SERVICES, choose_poison, play_acts
from demo_checks import Evidence, check_all, interrupted
from demo_fraud import Judge
from demo_history import read_history, read_state
from demo_keys import has_keys, keys
from demo_picture import PictureView
from demo_processes import CommandFailed
from demo_run import DemoFailed, Plan, Run
from demo_summary import summary
from demo_view import LiveView, Picture, PlainView, Service, View
from everlog import App, Client, Settings
from files import read_articles, read_orders
from forecast import demands, forecast, scores
from inventory import inventory, stock
from loyalty import loyalty, points
from world import DEFAULT_SEED, bursts, endless, with_bursts

ROOT: Final = Path(__file__).parents[2]
FULL: Final = Plan(orders=None, speed=240.0, bursts=20, dead_s=3.0)
FAST: Final = Plan(orders=1_500, speed=250.0, bursts=6, dead_s=1.0)

watcher = App("watcher")


async def play(run: Run) -> bool:
    """Play the acts, check what they left, print the summary; tells whether all is well."""
    began_s = time.monotonic()
    async with watcher.connect(run.settings) as client:
        with run.view, keys(sys.stdin.fileno(), run.hands.press) if run.picture.chosen else nullcontext():
            await beside(play_acts(run, client), run.watch_facts(client), run.watch_lags(client), run.draw(), run.hands.work())
        evidence = await collect(run, client)
    faults, after = check_all(evidence), None
    if run.kill is not None:
        after = interrupted(run.kill.noted, run.kill.committed, run.noted()[len(run.kill.noted) :], evidence.history)
        faults += after.faults()
    if run.flowed == 0:
        faults.append("nobody was served while the poison order blocked its customer")
    print(summary(run, evidence, after, run.judge))
    print(f"\nIt took {time.monotonic() - began_s:.0f} s. ", end="")
    if faults:
        print("The numbers do not add up:", *faults, sep="\n  ")
    else:
        print("Every number above was checked against the input file: they add up.")
    return not faults


async def beside(play: Coroutine[Any, Any, None], *works: Coroutine[Any, Any, None]) -> None:
    """Run `play`, and the others as long as it lasts.

    Raises:
        Exception: The error of the first that fails, which ends all.
    """
    tasks = [asyncio.create_task(work) for work in (play, *works)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def collect(run: Run, client: Client) -> Evidence:
    """Read what the run left behind."""
    return Evidence(
        list(islice(endless(run.input), run.total)) if run.plan.endless or run.wants_quit else run.input,
        {article.sku: article.department for article in read_articles()},
        await read_history(client),
        await read_state(inventory, stock, run.settings),
        await read_state(loyalty, points, run.settings),
        await read_state(forecast, demands, run.settings),
        (await read_state(forecast, scores, run.settings)).get(("all",), ForecastScore()),
        [msgspec.json.decode(line, type=dict[str, str]) for line in (run.folder / "mails.jsonl").read_bytes().splitlines()],
    )


# ---- starting and ending ----


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The shop: real orders, three acts, checked numbers.")
    parser.add_argument("--orders", type=int, help="how many real orders; all by default")
    parser.add_argument("--speed", type=float, help="orders a second")
    parser.add_argument("--seed", default=DEFAULT_SEED, help="of what is ours: stock, distances, fraud bursts")
    parser.add_argument("--play", action="store_true", help="orders without end after the acts, until you press q")
    parser.add_argument("--fast", action="store_true", help="a short run with all three acts")
    parser.add_argument("--plain", action="store_true", help="lines instead of a table, also in a terminal")
    parser.add_argument("--picture", type=Path, help="keep the screen while a service is killed, as an SVG")
    parser.add_argument("--log-url", help="where the log is; a file in the folder by default")
    parser.add_argument(
        "--store-url", help="where each service's store is, with {app} for its name; a file in the folder by default"
    )
    parser.add_argument("--folder", type=Path, help="where to leave everything; build/demo-TIME by default")
    return parser.parse_args(words)


async def perform(options: argparse.Namespace) -> bool:
    """Prepare the run that the options ask for, and play it."""
    plan = FAST if options.fast else FULL
    plan = replace(plan, orders=options.orders or plan.orders, speed=options.speed or plan.speed, endless=options.play)
    real = read_orders(plan.orders)
    orders = with_bursts(real, plan.bursts)
    poison = choose_poison(orders, plan.poison_between)
    folder: Path = (options.folder or ROOT / "build" / time.strftime("demo-%Y%m%d-%H%M%S")).resolve()
    (folder / ".everlog").mkdir(parents=True)
    picture = Picture(len(orders), {name: Service() for name in (*SERVICES, LATE)}, chosen="inventory" if has_keys() else "")
    view: View = PlainView(picture) if options.plain or not sys.stdout.isatty() else LiveView(picture)
    if options.picture:
        view = PictureView(picture, view, options.picture.resolve())
    settings = Settings(
        log_url=options.log_url or f"sqlite:{folder}/.everlog/log.db",
        store_url=options.store_url or f"sqlite:{folder}/.everlog/{{app}}.db",
    )
    judge = Judge(orders, bursts(real, plan.bursts))
    run = Run(plan, folder, settings, orders=orders, poison=poison, judge=judge, view=view, picture=picture)
    listen_to_signals(run)
    try:
        return await play(run)
    finally:
        run.processes.close()


def listen_to_signals(run: Run) -> None:
    """Let SIGTERM, and a terminal that is closed, end at once; and Ctrl-C too, but the first one of somebody who has keys, which quits."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def interrupt() -> None:
        if run.picture.chosen and not run.wants_quit:
            run.quit()
        else:
            task.cancel()

    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    loop.add_signal_handler(signal.SIGHUP, task.cancel)
    loop.add_signal_handler(signal.SIGINT, interrupt)


def main() -> int:
    options = arguments()
    if options.play and not has_keys():
        print("--play goes on until you press q: it needs a terminal", file=sys.stderr)
        return 2
    os.environ["SHOP_SEED"] = options.seed
    try:
        return 0 if asyncio.run(perform(options)) else 1
    except (DemoFailed, CommandFailed) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\nStopped; its processes are gone.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
