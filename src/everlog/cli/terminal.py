"""What people see: consoles, tables that read well at 80 columns, ages, and text from the log that cannot steer a terminal."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from typing import Final, NoReturn, Self

import msgspec
from rich.console import Console
from rich.table import Table

from everlog.clock import to_datetime

_WIDE: Final = 10_000
"""Columns of what is no terminal: a pipe gets whole lines."""
_OBEYED: Final = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class Screen(Console):
    """A console that tells its caller when nobody reads any more, instead of ending the process."""

    def on_broken_pipe(self) -> NoReturn:
        """Raise what rich has caught: it is called in the `except` clause."""
        raise  # noqa: PLE0704


def screen(*, stderr: bool = False) -> Screen:
    """Return a console for stdout, or stderr, as it is now. Text is printed as it is: no markup, no colours by guess."""
    file = sys.stderr if stderr else sys.stdout
    return Screen(file=file, width=None if file.isatty() else _WIDE, highlight=False, markup=False, emoji=False)


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """Return an empty table. The columns in `right` hold numbers and are never wrapped; the others give way."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        if name in right:
            made.add_column(name, justify="right", no_wrap=True)
        else:
            made.add_column(name, overflow="fold")
    return made


def print_json(value: object) -> None:
    """Print one JSON document to stdout."""
    sys.stdout.write(_json(value) + "\n")
    sys.stdout.flush()


def _json(value: object) -> str:
    """Return indented JSON. JSON itself escapes what is below U+0020; a terminal also obeys what is above U+007E."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class JsonArray:
    """One JSON array on stdout, an element at a time, so that it may be longer than memory.

    A context manager. What fails before the first element prints nothing; what fails later leaves an array without its end.
    """

    def __init__(self) -> None:
        self._is_empty = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            sys.stdout.write("[]\n" if self._is_empty else "\n]\n")
            sys.stdout.flush()

    def add(self, value: object) -> None:
        """Print an element."""
        text = _json(value).replace("\n", "\n  ")  # a line end inside a string is written as an escape
        sys.stdout.write(("[\n  " if self._is_empty else ",\n  ") + text)
        self._is_empty = False


def printable(text: str) -> str:
    """Return text without anything that a terminal would obey: escape sequences, line ends, changes of direction."""
    if text.isprintable():
        return text
    return "".join([sign if sign.isprintable() else sign.encode("unicode_escape", "surrogatepass").decode() for sign in text])


def age(seconds: float) -> str:
    """Return a time span in its largest fitting unit: `850 ms`, `12 s`, `3 min`, `5 h`, `40 d`."""
    for limit, size, unit in ((0.9995, 0.001, "ms"), (59.5, 1, "s"), (3570, 60, "min"), (84_600, 3_600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def ago(moment_us: int, now_us: int) -> str:
    """Return how long ago a moment was; what lies ahead counts as now."""
    return f"{age(max(0, now_us - moment_us) / 1e6)} ago"


def local_time(moment_us: int) -> str:
    """Return a moment as the time of day here, with the date where that is not today's."""
    moment = to_datetime(moment_us).astimezone()
    form = "%H:%M:%S.%f" if moment.date() == datetime.now(UTC).astimezone().date() else "%Y-%m-%d %H:%M:%S.%f"
    return moment.strftime(form)[:-3]


def iso_time(moment_us: int) -> str:
    """Return a moment in UTC as RFC 3339 has it."""
    return to_datetime(moment_us).isoformat(timespec="microseconds").replace("+00:00", "Z")


def counted(number: int, noun: str) -> str:
    """Return `1 key`, `2 keys`, `12,345 keys`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
