"""The command line: running apps, publishing, and looking at what the log and the stores hold."""

from __future__ import annotations

from typing import NoReturn

from everlog.cli.exits import leave
from everlog.cli.root import app


def main() -> NoReturn:
    """Do what the arguments of this process say, and end it."""
    try:
        app(prog_name="everlog")
    except SystemExit as end:
        leave(end.code if isinstance(end.code, int) else 0)
    leave(0)
