"""Held keys as people and scripts see them: a list of two lines a key, a key in whole, and the same as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from everlog.cli.asking import is_parked
from everlog.cli.records import cloud_event
from everlog.cli.terminal import age, ago, counted, iso_time, printable, screen
from everlog.record import StoredRecord
from everlog.store import Cause, Held, ParkedKey, SubscriptionStatus
from everlog.subscriptions.holding import ROOM

_COLUMNS: Final = ("key", "state", "behind", "attempts", "held")
_LEAST_KEY_CELLS: Final = 12
_MOST_KEY_CELLS: Final = 64
"""So wide is the column of a pipe; longer keys move the rest of their line."""
_FULL: Final = 0.99
"""A slot stops when the next record has no room, which is just before the bound."""

_WORDS: Final = {
    Cause.FAILED: "failed",
    Cause.KILLED: "took its process down",
    Cause.UNREADABLE: "cannot be read",
    Cause.BEHIND: "waits",
}


def why(held: Held) -> str:
    """Return in words why a record is held, with its error, in one line that a terminal can be given."""
    words = _WORDS[held.cause]
    return f"{words}: {printable(held.error)}" if held.error else words


def state(key: ParkedKey, now_us: int) -> str:
    """Return whether a key is parked, or when it is tried again."""
    due_us = key.first.next_attempt_us
    if due_us is None:
        return "parked" if is_parked(key) else "next in its queue"
    return f"blocked, next in {age((due_us - now_us) / 1e6)}" if due_us > now_us else "blocked, due now"


def place(record: StoredRecord) -> str:
    """Return where the log has, or had, a record."""
    return f"{printable(record.topic)}/{record.partition}@{record.offset}"


class KeyList:
    """A list of keys, printed a page at a time: for each a line of what can be compared, and one of what was wrong.

    Args:
        app: Whose keys they are. A subscription of another name is said.
        console: Where to print. What is no terminal gets one line per key.
        now_us: The time, for the ages.
    """

    def __init__(self, app: str, console: Console, now_us: int) -> None:
        self._app = app
        self._console = console
        self._now_us = now_us
        self._cells: list[int] = []

    def print(self, page: Sequence[ParkedKey]) -> None:
        """Print a page. The columns are as wide as the first one needs them."""
        rows = [self._row(key) for key in page]
        if not self._cells:
            self._cells = [max(map(cell_len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
            most = self._console.width - sum(self._cells[1:]) - 2 * len(_COLUMNS)
            self._cells[0] = min(self._cells[0], max(_LEAST_KEY_CELLS, most) if self._console.is_terminal else _MOST_KEY_CELLS)
            self._line(_COLUMNS, style="bold")
        for key, row in zip(page, rows, strict=True):
            self._line(row, end=self._reason(key))

    def _row(self, key: ParkedKey) -> tuple[str, ...]:
        first = key.first
        numbers = f"{key.records - 1:,}", str(first.attempts), ago(first.held_at_us, self._now_us)
        return printable(key.key), state(key, self._now_us), *numbers

    def _line(self, row: Sequence[str], *, end: str = "", style: str = "") -> None:
        (key, state, *numbers), (key_cells, state_cells, *number_cells) = row, self._cells
        if cell_len(key) > key_cells and self._console.is_terminal:
            self._console.print(key, style="bold", overflow="fold", no_wrap=False)
            key = ""
        line = Text.assemble((f"{key}{' ' * (key_cells - cell_len(key))}", "bold"), f"  {state:<{state_cells}}", style=style)
        for number, cells in zip(numbers, number_cells, strict=True):
            line.append(f"  {number:>{cells}}")
        if end and not self._console.is_terminal:
            line.append(f"  {end}")
        self._console.print(line, no_wrap=True, overflow="ellipsis", crop=True)
        if end and self._console.is_terminal:
            self._console.print(Text(f"  {end}", style="dim"), no_wrap=True, overflow="ellipsis")

    def _reason(self, key: ParkedKey) -> str:
        whose = "" if key.subscription == self._app else f"{key.subscription}: "
        return f"{whose}{printable(key.first.record.type)} {why(key.first)}"


def key_summary(key: ParkedKey) -> dict[str, Any]:
    """Return a key as JSON has it."""
    first = key.first
    due = iso_time(first.next_attempt_us) if first.next_attempt_us is not None else None
    return {
        "id": first.id,
        "subscription": key.subscription,
        "key": key.key,
        "state": "parked" if is_parked(key) else "blocked",
        "next_attempt_at": due,
        "events": key.records,
        "behind": key.records - 1,
        "type": first.record.type,
        "attempts": first.attempts,
        "cause": first.cause.value,
        "error": first.error,
        "held_at": iso_time(first.held_at_us),
    }


def key_details(key: ParkedKey, behind: Sequence[Held]) -> dict[str, Any]:
    """Return a key in whole as JSON has it, with the records behind its first one."""
    return key_summary(key) | {
        "traceback": key.first.trace,
        "event": cloud_event(key.first.record, position=None),
        "events_behind": [cloud_event(held.record, position=None) for held in behind],
    }


def print_key(key: ParkedKey, behind: Sequence[Held], now_us: int) -> None:
    """Print the first event of a key's queue in whole, and a line for each of `behind`."""
    first = key.first
    head = {
        "subscription": key.subscription,
        "key": printable(key.key),
        "state": f"{state(key, now_us)} after {counted(first.attempts, 'attempt')}, held {ago(first.held_at_us, now_us)}",
        "behind it": f"{counted(key.records - 1, 'event')} of this key",
    }
    print_event(head, first.record, why(first))
    console = screen()
    if first.trace:
        console.print("traceback", style="bold")
        console.print("\n".join([printable(line) for line in first.trace.rstrip("\n").split("\n")]), soft_wrap=True)
    if behind:
        console.print("behind it, in this order", style="bold")
        for held in behind:
            record = held.record
            console.print(f"{place(record)}  {iso_time(record.logged_at_us)}  {printable(record.type)}  {printable(record.id)}")
        left = key.records - 1 - len(behind)
        if left > 0:
            console.print(f"and {left:,} more")


def print_event(head: dict[str, str], record: StoredRecord, error: str) -> None:
    """Print what is said of an event, its envelope, its error and its data."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    rows = {
        **head,
        "event": place(record),
        "type": printable(record.type),
        "id": printable(record.id),
        "source": printable(record.source),
        "time": iso_time(record.time_us),
        "logged at": iso_time(record.logged_at_us),
        **{f"header {printable(name)}": printable(value) for name, value in record.headers.items()},
        "error": error,
    }
    for name, value in rows.items():
        grid.add_row(name, value)
    console = screen()
    console.print(grid)
    console.print("data", style="bold")
    console.print(_pretty(record.data), soft_wrap=True)


def _pretty(data: bytes) -> str:
    try:
        text = msgspec.json.format(data, indent=2).decode()
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = repr(data)
    return "\n".join([printable(line) for line in text.split("\n")])


def is_full(records: int, size_bytes: int) -> bool:
    """Tell whether a subscription holds as much as it may, or nearly so."""
    return records >= _FULL * ROOM.records or size_bytes >= _FULL * ROOM.size_bytes


def full_line(app: str, name: str, records: int, size_bytes: int) -> str:
    """Say that a subscription holds as much as it may, and what to do."""
    return (
        f"{name} holds {counted(records, 'event')} ({size_bytes:,} bytes), and may hold {ROOM.records:,} ({ROOM.size_bytes:,} bytes): "
        f"it stops where the next one has no room; redrive or skip what `everlog parked list {app}` shows"
    )


def paused_line(name: str, reason: str) -> str:
    """Say that a subscription is paused, and why."""
    return f"{name} is paused, and tries one event now and then: {printable(reason)}"


def standing_warnings(app: str, subscription: SubscriptionStatus) -> list[str]:
    """Return what is wrong with where a subscription stands: that it is paused, that it holds as much as it may."""
    lines = [paused_line(subscription.name, subscription.paused[0])] if subscription.paused else []
    if is_full(subscription.held_records, subscription.held_bytes):
        lines.append(full_line(app, subscription.name, subscription.held_records, subscription.held_bytes))
    return lines
