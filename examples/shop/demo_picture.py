"""One screen of a run as an SVG: the moment at which the most waits for a service that was killed. Nothing in it is staged."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import TracebackType
from typing import Final

from rich.console import Console
from rich.text import Text

from demo_view import LINES, Picture, View, render

WIDTH: Final = 64
"""Columns: narrow enough to be read on a phone."""
_HEIGHT: Final = 40


class PictureView:
    """Shows what another view shows, and keeps the screen for a file."""

    def __init__(self, picture: Picture, view: View, path: Path) -> None:
        self._picture = picture
        self._view = view
        self._path = path
        self._lines: list[Text] = []
        self._most = 0
        self._svg = ""

    def __enter__(self) -> PictureView:
        self._view.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._view.__exit__(kind, error, trace)
        self._path.write_text(self._svg or self._drawn())

    def headline(self, text: str) -> None:
        self._keep(text, "bold")
        self._view.headline(text)

    def say(self, text: str) -> None:
        self._keep(text, "default")
        self._view.say(text)

    def _keep(self, text: str, style: str) -> None:
        line = Text(f"{self._picture.age_s:5.1f} s  ", "dim")
        self._lines = [*self._lines, line.append(text, style)][-LINES:]

    def refresh(self) -> None:
        self._view.refresh()
        waiting = max((one.lag for one in self._picture.services.values() if one.state == "killed"), default=0)
        if waiting > self._most:
            self._most, self._svg = waiting, self._drawn()

    def _drawn(self) -> str:
        console = Console(record=True, width=WIDTH, height=_HEIGHT, file=io.StringIO(), force_terminal=True)
        console.print(render(self._picture, self._lines, WIDTH, _HEIGHT))
        drawn = console.export_svg(title="make demo")
        return re.sub(r"@font-face \{.*?\}\n", "", drawn, flags=re.DOTALL)  # it would ask the network for a font
