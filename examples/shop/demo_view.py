"""What is seen while the demo runs: a table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Protocol

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

LINES: Final = 9
FEWEST_LINES: Final = 3
WIDTH: Final = 80
HELP: Final = "k kill -9   p pause   r resume, start or restart   q end in order"
PLAIN_EVERY_S: Final = 3.0
_COLOURS: Final = {
    "running": "green",
    "catching up": "yellow",
    "starting": "yellow",
    "killed": "bold red",
    "paused": "bold magenta",
    "not yet": "dim",
    "ended": "dim",
}


@dataclass
class Service:
    """A row of the table."""

    state: str = "not yet"
    handled: int = 0
    lag: int = 0
    waiting: int = 0
    """Events of blocked and parked keys."""
    by_hand: str = ""
    """What a person did to it that is not made good yet."""
    has_reported: bool = False

    @property
    def backlog(self) -> str:
        """How much there is for it to do, by its last report."""
        return f"{self.lag:,} events" if self.has_reported else "all events"


@dataclass
class Picture:
    """All that is shown. What it says comes from the log, and from whether the processes are alive."""

    total: int
    services: Mapping[str, Service]
    headline: str = "opening"
    counts: Counter[str] = field(default_factory=Counter[str])
    """Facts in the log, by the last word of their type's name."""
    forecast: str = "no day has ended"
    fraud: str = "no burst yet"
    chosen: str = ""
    """The service that the keys act on; empty where there are no keys."""
    began_s: float = field(default_factory=time.monotonic)

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.began_s

    @property
    def decided(self) -> int:
        return self.counts["suspected"] + self.counts["reserved"] + self.counts["refused"]

    @property
    def by_hand(self) -> Sequence[str]:
        """What is down by hand, and how much waits for it."""
        return [f"{name} {one.by_hand}: {one.backlog} wait" for name, one in self.services.items() if one.by_hand]


class View(Protocol):
    """Shows a picture as it changes."""

    def __enter__(self) -> View: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def headline(self, text: str) -> None:
        """Show what the current act is about."""
        ...

    def say(self, text: str) -> None:
        """Show something that has happened."""
        ...

    def refresh(self) -> None:
        """Show the picture as it is now."""
        ...


class PlainView:
    """Lines, for logs and tests."""

    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        self._shown_s = time.monotonic()

    def __enter__(self) -> PlainView:
        if self._picture.chosen:
            self.say(f"keys: 1 to {len(self._picture.services)} choose a service; {HELP}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def headline(self, text: str) -> None:
        self._picture.headline = text
        print(f"\n== {text}", flush=True)

    def say(self, text: str) -> None:
        print(f"[{self._picture.age_s:5.1f} s] {text}", flush=True)

    def refresh(self) -> None:
        now_s = time.monotonic()
        if now_s - self._shown_s < PLAIN_EVERY_S:
            return
        self._shown_s = now_s
        picture = self._picture
        behind = [f"{name} {service.lag:,}" for name, service in picture.services.items() if service.lag]
        self.say(
            f"placed {picture.counts['placed']:,} of {picture.total:,}, decided {picture.decided:,}"
            + (f"; behind: {', '.join(behind)}" if behind else "")
        )
        self.say(f"forecast {picture.forecast}")
        self.say(f"fraud {picture.fraud}")
        for line in picture.by_hand:
            self.say(line)


class LiveView:
    """A table that is drawn anew in place."""

    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        self._lines: deque[Text] = deque(maxlen=LINES)
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False)
        self._stack = ExitStack()

    def __enter__(self) -> LiveView:
        self._stack.enter_context(self._live)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.refresh()
        self._stack.close()

    def headline(self, text: str) -> None:
        self._picture.headline = text
        self.say(text, "bold")

    def say(self, text: str, style: str = "") -> None:
        line = Text(f"{self._picture.age_s:5.1f} s  ", "dim")
        line.append(text, style or "default")
        self._lines.append(line)
        self.refresh()

    def refresh(self) -> None:
        width, height = self._console.size  # it may have changed
        self._live.update(render(self._picture, list(self._lines), min(WIDTH, width), height), refresh=True)


def render(picture: Picture, lines: list[Text], width: int, height: int) -> RenderableType:
    """Return the picture as rich draws it, `width` columns wide and, where it can be, at most `height` rows high."""
    table = Table(box=box.SIMPLE_HEAD, width=width, pad_edge=False)
    for name, side in (("service", "left"), ("state", "left"), ("handled", "right"), ("behind", "right"), ("held", "right")):
        table.add_column(name, justify="right" if side == "right" else "left", no_wrap=True)
    for key, (name, service) in enumerate(picture.services.items(), start=1):
        mark = f"{'>' if name == picture.chosen else ' '}{key} " if picture.chosen else ""
        numbers = [f"{number:,}" if number else "·" for number in (service.handled, service.lag, service.waiting)]
        table.add_row(mark + name, Text(service.state, _COLOURS.get(service.state, "")), *numbers)
    bar = Table.grid(padding=(0, 1))
    bar.width = width
    bar.add_column(width=8)
    bar.add_column(ratio=1)
    bar.add_column(width=15, justify="right")
    for label, done in (("placed", picture.counts["placed"]), ("decided", picture.decided)):
        bar.add_row(label, ProgressBar(picture.total, done), f"{done:,}/{picture.total:,}")
    counts = "   ".join(f"{word} {picture.counts[word]:,}" for word in ("reserved", "refused", "suspected"))
    hands = [Text(line, "bold magenta") for line in picture.by_hand]
    footer = [Text(f"1-{len(picture.services)} choose   {HELP}", "reverse")] if picture.chosen else []
    others = len(picture.services) + 3 + 5 + 3 + len(hands) + len(footer)
    room = min(LINES, max(FEWEST_LINES, height - others))
    said = [line[:width] for line in lines[-room:]] + [Text()] * (room - len(lines))
    return Group(
        Rule(Text(f"The shop: {picture.headline}", "bold"), style="dim"),
        table,
        bar,
        Text(f"{'':9}{counts}", "dim"),
        *_figures(picture, width),
        *said,
        *hands,
        *footer,
    )


def _figures(picture: Picture, width: int) -> list[Text]:
    lines: list[Text] = []
    for name, figures in (("forecast", picture.forecast), ("fraud", picture.fraud)):
        line = Text(f"{name:9}", "dim")
        line.append(figures, "default")
        line.truncate(width, overflow="ellipsis")
        lines.append(line)
    return lines
