"""How a command ends: one line on stderr for every error, an exit code that a script can use, and no thread that keeps the process."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn

import typer
from typer.core import TyperGroup

from everlog.cli.terminal import printable
from everlog.errors import CommandRefused, EverlogError, FileNewer, FilePlace, FileStrange, ModuleRefused, StartRefused

FAILED: Final = 1
USAGE: Final = 2
LAGS: Final = 3
REFUSED: Final = 4
FAILED_AGAIN: Final = 5
NOT_THROUGH: Final = 6

_OURS: Final = str(Path(__file__).resolve().parent.parent)


class CommandLine(TyperGroup):
    """The root command. Whatever is raised below it becomes one line on stderr and an exit code; `--debug` shows the traceback too."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: ARG002 typer passes it
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Parse and run, and raise `SystemExit` with the code. The parameters are those of typer; `standalone_mode` changes nothing."""
        words = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(words, prog_name, complete_var, False, windows_expand_args, **extra)
        except Exception as error:
            code = report(error, is_debug="--debug" in takewhile(lambda word: word.startswith("-"), words))
        sys.exit(code if isinstance(code, int) else 0)


def report(error: Exception, *, is_debug: bool) -> int:
    """Say on stderr what went wrong, and return the exit code that stands for it."""
    if is_debug:
        traceback.print_exception(error)
    line = printable(_line(error))  # it may quote what the log holds, or what was typed
    if line:
        with suppress(OSError):  # nobody reads it
            print(f"everlog: {line}", file=sys.stderr, flush=True)
    return _code(error)


def _code(error: Exception) -> int:
    if isinstance(error, typer.TyperException):
        return error.exit_code
    if isinstance(error, ModuleRefused):
        return USAGE
    return REFUSED if isinstance(error, (StartRefused, FileNewer, FileStrange, FilePlace)) else FAILED


def _line(error: Exception) -> str:
    if isinstance(error, typer.Abort):
        return "nothing was changed"
    if isinstance(error, typer.TyperException):
        text = " ".join(error.format_message().split())
        if not text:
            return ""  # help was printed instead
        context = getattr(error, "ctx", None)
        return f"{text.rstrip('.')} (see {context.command_path} --help)" if context is not None else text
    text = " ".join(str(error).split())
    if isinstance(error, CommandRefused) or type(error) is StartRefused:
        return text
    if isinstance(error, EverlogError):
        return f"{text} [{type(error).__name__}]"  # by which the documentation lists them
    shown = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{shown}{place_of(error)}; everlog --debug … shows the traceback"


def place_of(error: BaseException) -> str:
    """Return ` (FILE:LINE)` of the user's own line that led to an error; empty where no frame is the user's."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f" ({_short(error.filename)}:{error.lineno})"
    place = ""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if _is_users(name):
            place = f" ({_short(name)}:{trace.tb_lineno})"
        trace = trace.tb_next
    return place


def _is_users(filename: str) -> bool:
    if filename.startswith("<"):
        return False
    return not filename.startswith((_OURS, sys.base_prefix + "/lib/", sys.prefix + "/lib/")) and not filename.startswith(
        sys.prefix + "/bin/"
    )


def _short(filename: str) -> str:
    """Return a file's path from the current folder on, where it lies below it."""
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename


def leave(code: int) -> NoReturn:
    """Flush what was written and end the process at once.

    A writer thread that waits for another process's lock, or a handler's thread that never returns, keeps a Python process
    alive at its end. What must be cleaned up is cleaned up before, in `aclose` and in the app's lifespan; `atexit` does not run.
    """
    with suppress(Exception):
        logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
