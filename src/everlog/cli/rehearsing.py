"""`everlog replay --dry-run`: a replay on a copy of the store, and what would be different."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from everlog.cli.options import confirm, existing_log, existing_store
from everlog.cli.repetition import emptying, plan_of
from everlog.cli.terminal import counted, print_json, printable, screen
from everlog.rehearsal import Comparison, Difference, Rehearsal, Wish, copied, rehearse
from everlog.settings import Settings
from everlog.subscriptions.declaration import AppDeclaration, SubscriptionDeclaration
from everlog.subscriptions.repeating import From, plan_repetition

_BAR_CELLS: Final = 30
_SHOWN_CHARACTERS: Final = 200
_SHOWN_FAILED: Final = 20


class Wanted(NamedTuple):
    """What is to be rehearsed, and how it is shown."""

    start: From
    keep_state: bool
    most: int
    as_json: bool


async def rehearse_replay(
    settings: Settings, app: AppDeclaration, declaration: SubscriptionDeclaration, wanted: Wanted, *, is_sure: bool
) -> None:
    """Show the plan, ask, replay on a copy, and show what is different.

    Raises:
        CommandRefused: A replay could not be, or what the handlers need does not answer.
        FeatureMissing: The store cannot be copied.
    """
    async with existing_log(settings) as log, existing_store(settings, declaration.app) as store:
        plan = await plan_repetition(log, store, declaration, wanted.start, rebuilds=True, keep_state=wanted.keep_state)
        if not wanted.as_json:
            for line in plan_of(declaration, plan, 0):
                _say(line)
            _say(
                "all that on a copy of the store: the store and the log stay as they are. The handlers run, with all that they do outside"
            )
        confirm("Run the handlers on a copy?", is_sure=is_sure)
        # What handlers print is none of the document.
        aside = redirect_stdout(sys.stderr) if wanted.as_json else nullcontext()
        with tempfile.TemporaryDirectory(prefix="everlog-") as folder, _bars() as bars, aside:
            copying, handling = bars.add_task("copying", total=None), bars.add_task("handling", total=plan.events)
            async with copied(
                store,
                settings,
                declaration.app,
                Path(folder),
                lambda done, total: bars.update(copying, completed=done, total=total),
            ) as copy:
                found = await rehearse(
                    app,
                    declaration,
                    log,
                    copy,
                    Wish(wanted.start, wanted.keep_state, emptying(declaration)),
                    most=wanted.most,
                    told=lambda done, total: bars.update(handling, completed=done, total=total),
                )
    if wanted.as_json:
        print_json(_document(declaration, found))
        return
    for line in _lines(found):
        _say(line)


@contextmanager
def _bars() -> Generator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(_BAR_CELLS), MofNCompleteColumn(), TimeRemainingColumn())
    console = screen(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield bars


def _lines(found: Rehearsal) -> Iterator[str]:
    for state, comparison in found.rows.items():
        yield from _compared(f"state {state}", "row", comparison)
    yield from _compared("published", "event", found.published, note=", and a replay publishes none of these again")
    if found.new_count:
        yield f"published for the first time: {counted(found.new_count, 'event')}"
        yield from _differences(found.new, found.new_count)
    if found.failed:
        yield f"{counted(len(found.failed), 'key')} would be parked, with {counted(sum(key.records for key in found.failed), 'event')}:"
        for key in found.failed[:_SHOWN_FAILED]:
            yield f"  {printable(key.key)}: {printable(key.first.error)}"
    if (
        all(comparison.is_same for comparison in (*found.rows.values(), found.published))
        and not found.new_count
        and not found.failed
    ):
        yield "a replay would change nothing"


def _compared(what: str, unit: str, comparison: Comparison, *, note: str = "") -> Iterator[str]:
    if comparison.is_same:
        yield f"{what}: {counted(comparison.same, unit)}, all the same"
        return
    words = (
        f"{number:,} {word}"
        for word, number in (
            ("the same", comparison.same),
            ("different", comparison.changed),
            ("more", comparison.added),
            ("missing", comparison.gone),
        )
        if number
    )
    yield f"{what}: {', '.join(words)}{note}"
    yield from _differences(comparison.first, comparison.changed + comparison.added + comparison.gone)


def _differences(first: Sequence[Difference], count: int) -> Iterator[str]:
    for one in first:
        yield f"  {printable(one.what)} {printable(one.key)}: {_shown(one.before)} -> {_shown(one.after)}"
    if count > len(first):
        yield f"  and {count - len(first):,} more (--show N)"


def _shown(value: bytes | None) -> str:
    if value is None:
        return "nothing"
    text = printable(value.decode(errors="backslashreplace"))
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def _document(declaration: SubscriptionDeclaration, found: Rehearsal) -> dict[str, Any]:
    return {
        "app": declaration.app,
        "subscription": declaration.name,
        "events": found.plan.events,
        "states": {state: _counts(comparison) for state, comparison in found.rows.items()},
        "published": _counts(found.published),
        "new": {"count": found.new_count, "first": [_difference(one) for one in found.new]},
        "parked": [{"key": key.key, "events": key.records, "error": key.first.error} for key in found.failed],
    }


def _counts(comparison: Comparison) -> dict[str, Any]:
    return {
        "same": comparison.same,
        "different": comparison.changed,
        "more": comparison.added,
        "missing": comparison.gone,
        "first": [_difference(one) for one in comparison.first],
    }


def _difference(one: Difference) -> dict[str, Any]:
    return {"what": one.what, "key": one.key, "before": _json(one.before), "after": _json(one.after)}


def _json(value: bytes | None) -> msgspec.Raw | None:
    return None if value is None else msgspec.Raw(value)


def _say(line: str) -> None:
    screen().print(line, soft_wrap=True, markup=False, highlight=False)
