"""Having held keys redriven or skipped: a bar while that goes on, and what became of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

import typer
from rich.progress import BarColumn, Progress, TextColumn

from everlog.cli import asking
from everlog.cli.asking import Action, Answers, Target
from everlog.cli.exits import FAILED_AGAIN, NOT_THROUGH
from everlog.cli.holding import paused_line, why
from everlog.cli.options import existing_store
from everlog.cli.terminal import counted, printable, screen
from everlog.clock import SystemClock
from everlog.settings import Settings
from everlog.store import Held

_NAMED: Final = 20
"""So many keys that failed again are named with their errors."""
_BAR_CELLS: Final = 20
"""What is said beside it needs the rest of 80 columns."""
_INTERRUPTED: Final = 130


class Answered(NamedTuple):
    """What became of a request."""

    asked: int
    """Keys that it was filed for."""
    changed: int
    """Keys that had another first event by then, and were left alone."""
    answers: Answers
    failed: Sequence[Held]
    """The first events of some of those that failed again."""
    behind: int
    """Events that were behind the first ones."""
    waited_s: float | None
    """For how long at most; 0 for not at all, ``None`` for as long as it took."""
    is_interrupted: bool
    """By Ctrl-C. The request stays."""


async def carry_out(
    settings: Settings, app: str, targets: Sequence[Target], action: Action, *, is_named: bool, wait_s: float | None
) -> Answered:
    """File a request for each key and wait for what becomes of it. Ctrl-C ends the waiting, and nothing else.

    Args:
        settings: Where the store is.
        app: Whose.
        targets: The keys, as they were seen.
        action: What to ask for.
        is_named: They were asked for by key, and may be blocked instead of parked.
        wait_s: At most so many seconds; ``None``: as long as it takes, while a worker lives.
    """
    async with existing_store(settings, app) as store:
        asked = await asking.ask(store, targets, action, is_named=is_named)
        is_interrupted = False
        try:
            with _bar(action, targets) as on_look:
                answers = await asking.follow(store, targets, action, clock=SystemClock(), wait_s=wait_s, on_look=on_look)
        except asyncio.CancelledError:
            is_interrupted = True
            answers = await asking.look(store, targets, action)
        failed = await asking.firsts(store, answers.parked[:_NAMED])
        behind = sum([target.records - 1 for target in targets])
        return Answered(asked, len(targets) - asked, answers, failed, behind, wait_s, is_interrupted)


@contextmanager
def _bar(action: Action, targets: Sequence[Target]) -> Generator[Callable[[Answers], None]]:
    """Show on stderr how the queues drain, where somebody sees it; yields what to tell how far they are. A pause is said once."""
    console = screen(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(_BAR_CELLS), TextColumn("{task.fields[note]}"))
    total = sum([target.records for target in targets]) if action == "redrive" else len(targets)
    said = set[str]()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("redriving" if action == "redrive" else "skipping", total=total, note="")

        def show(answers: Answers) -> None:
            left = answers.events if action == "redrive" else len(answers.waiting)
            note = f"{len(answers.done):,} of {counted(len(targets), 'key')}"
            if action == "redrive":
                note += f", {counted(left, 'event')} left"
            if answers.parked:
                note += f", {len(answers.parked):,} failed again"
            most = max(total, left)  # events may come behind
            bar.update(task, total=most, completed=most - left, note=note)
            for name, reason in answers.paused.items():
                if name not in said and not answers.is_settled:
                    said.add(name)
                    console.print(f"everlog: {paused_line(name, reason)}", soft_wrap=True)

        yield show


def say_answers(app: str, answered: Answered, action: Action) -> None:
    """Print what became of the keys.

    Raises:
        Exit: Keys that were redriven failed again, the time to wait was over before all were through, or Ctrl-C ended the waiting.
    """
    answers, console = answered.answers, screen()
    if answered.changed:
        text = f"{counted(answered.changed, 'key')} had another first event by then, or none: left alone"
        console.print(text, soft_wrap=True)
    if action == "redrive":
        _say_redriven(answered)
    else:
        done = len(answers.done) - answered.changed
        if done > 0:
            console.print(f"skipped {counted(done, 'event')}; {counted(answered.behind, 'event')} behind go on", soft_wrap=True)
    _say_open(app, answered)
    if answered.is_interrupted:
        raise typer.Exit(_INTERRUPTED)
    if action == "redrive" and answers.parked:
        raise typer.Exit(FAILED_AGAIN)
    if answered.waited_s and not answers.is_settled:
        raise typer.Exit(NOT_THROUGH)  # who sets a limit asks whether it is done by then


def _say_redriven(answered: Answered) -> None:
    answers, console = answered.answers, screen()
    if answers.done:
        console.print(f"handled: {_names(answers.done)}", soft_wrap=True)
    if answers.parked:
        console.print(f"failed again: {counted(len(answers.parked), 'key')}")
        for held in answered.failed:
            console.print(f"  {printable(held.key)}: {why(held)}", soft_wrap=True)
        if len(answers.parked) > len(answered.failed):
            console.print(f"  and {len(answers.parked) - len(answered.failed):,} more")


def _say_open(app: str, answered: Answered) -> None:
    """Say what is still to come, and on what it waits."""
    answers, console = answered.answers, screen()
    if answers.running:
        console.print(f"not through yet: {_names(answers.running)}; the workers go on with it", soft_wrap=True)
    alone = [target for target in answers.waiting if target.subscription in answers.unattended]
    if alone:
        console.print(
            f"no worker of app {app!r} is running now: the request for {counted(len(alone), 'key')} is filed, and carried out when one runs, "
            f"also one that is just being started again",
            soft_wrap=True,
        )
    elif answers.waiting:
        long = f" within {answered.waited_s:g} s" if answered.waited_s else ""
        console.print(
            f"no worker has taken {counted(len(answers.waiting), 'key')}{long}: the request is filed, and carried out when one does",
            soft_wrap=True,
        )
    for name, reason in answers.paused.items():
        if not answers.is_settled:
            console.print(paused_line(name, reason), soft_wrap=True)


def _names(targets: Sequence[Target]) -> str:
    """Return a few keys by name, and how many they are where they are more."""
    if len(targets) > 1:
        first = ", ".join([printable(target.key) for target in targets[:5]])
        return f"{counted(len(targets), 'key')} ({first}{', …' if len(targets) > 5 else ''})"
    return printable(targets[0].key)
