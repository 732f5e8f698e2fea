"""Single keys from a terminal, which is left as it was found whatever happens."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import tty
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress


def is_in_front(terminal: int) -> bool:
    """Tell whether this process may change a terminal: who does it from behind is stopped."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False


def has_keys() -> bool:
    """Tell whether somebody sits at a terminal and sees what is printed."""
    return sys.stdin.isatty() and sys.stdout.isatty() and is_in_front(sys.stdin.fileno())


@contextmanager
def keys(terminal: int, on_key: Callable[[str], None], *, may_change: Callable[[int], bool] = is_in_front) -> Generator[None]:
    """Give each key to `on_key` as it is pressed, until the block ends. Ctrl-C and Ctrl-Z do what they always do.

    Needs a running event loop. Whoever kills the process with SIGKILL has to type `stty sane`.

    Args:
        terminal: The file descriptor of a terminal.
        on_key: Called on the event loop.
        may_change: Whether the terminal's modes may be changed now.
    """
    loop = asyncio.get_running_loop()
    before = termios.tcgetattr(terminal)

    def enter() -> None:
        if may_change(terminal):
            tty.setcbreak(terminal)

    def read() -> None:
        try:
            data = os.read(terminal, 64)
        except OSError:
            data = b""
        if not data:  # the terminal is gone
            loop.remove_reader(terminal)
        elif not data.startswith(b"\x1b"):  # an arrow is no letter
            for key in data.decode(errors="ignore"):
                on_key(key)

    try:
        enter()
        loop.add_signal_handler(signal.SIGCONT, enter)  # after Ctrl-Z and `fg`: the shell has set its own modes meanwhile
        loop.add_reader(terminal, read)
        yield
    finally:
        loop.remove_reader(terminal)
        loop.remove_signal_handler(signal.SIGCONT)
        if may_change(terminal):
            with suppress(termios.error):  # it is gone
                termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
