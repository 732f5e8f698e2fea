"""A user's module, and the command line around it: in this process, in processes of their own, and on a terminal."""

from __future__ import annotations

import fcntl
import os
import queue
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from typer.testing import Result

EVERLOG = str(Path(sys.executable).parent / "everlog")
PATIENCE_S = 30.0

SHOP = """
import asyncio
import pathlib

from everlog import App, Delivery, Event, Retry, Topic

orders = Topic("shop.orders", key="customer", partitions=4)
notes = Topic("shop.notes", key=None, partitions=4)


@orders.event("shop.order_placed/1")
class OrderPlaced(Event):
    order: str
    customer: str
    cents: int = 0


@notes.event("shop.note_taken/1")
class NoteTaken(Event):
    text: str


billing = App("billing", delivery=Delivery(on_error={Exception: Retry(attempts=2, first_s=0.01)}))
loyalty = App("loyalty")


@billing.on(OrderPlaced)
async def bill(order: OrderPlaced) -> None:
    if order.customer == "poison":
        mended = pathlib.Path("mended")
        if not mended.exists():
            raise RuntimeError("no money")
        if mended.read_text() == "slowly":
            print("handling", flush=True)
            await asyncio.sleep(3_600)
    if order.customer.startswith("down") and not pathlib.Path("mended").exists():
        raise ConnectionError("no bank")
    if order.customer == "slow":
        print("handling", flush=True)
        await asyncio.sleep(3_600)


@loyalty.on(OrderPlaced)
async def reward(order: OrderPlaced) -> None:
    print(f"rewarded {order.order}", flush=True)
"""

Cli = Callable[..., Result]
"""Runs a command in this process."""


def orders(*customers: str) -> str:
    """Return an order of each customer as a JSON line."""
    return "".join(f'{{"order": "{number}", "customer": "{customer}"}}\n' for number, customer in enumerate(customers, start=1))


def publish(cli: Cli, *customers: str) -> None:
    """Publish an order of each customer."""
    result = cli("publish", "shop", "shop.order_placed/1", stdin=orders(*customers))
    assert result.exit_code == 0, result.output


class Process:
    """`everlog` in a process of its own, whose lines can be waited for."""

    def __init__(self, *arguments: str) -> None:
        self.popen = subprocess.Popen([EVERLOG, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def wait_for(self, text: str) -> str:
        """Return the next line that has `text` in it."""
        end_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                line = self.next(timeout_s=max(0.0, end_s - time.monotonic()))
            except TimeoutError as error:
                raise AssertionError(f"{text!r} did not come:\n{self.text}") from error
            self.lines.append(line)
            if text in line:
                return line

    def next(self, *, timeout_s: float) -> str:
        """Return the next line, which is not added to `lines`."""
        try:
            line = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError from None
        assert line is not None, f"it has ended:\n{self.text}"
        return line

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def end(self, number: signal.Signals | None = None) -> int:
        """Send a signal, and return the exit code."""
        if number is not None:
            self.send(number)
        code = self.popen.wait(PATIENCE_S)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "what it has started goes on without it"
        while (line := self._queue.get()) is not None:
            self.lines.append(line)
        return code

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
        self._thread.join(PATIENCE_S)
        assert self.popen.stdout is not None
        self.popen.stdout.close()


Start = Callable[..., Process]
"""Starts `everlog` in a process of its own."""


def on_terminal(arguments: Sequence[str], *, columns: int, typed: str = "") -> list[str]:
    """Return what `everlog` shows on a terminal so wide, a line each, without colours; and what is typed there."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    environment.pop("COLUMNS", None)
    process = subprocess.Popen([EVERLOG, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    os.write(master, typed.encode())
    shown = b""
    try:
        while data := os.read(master, 65_536):
            shown += data
    except OSError:  # EIO: the process has closed the terminal
        pass
    finally:
        os.close(master)
    process.wait(PATIENCE_S)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    return [line.rstrip() for line in text.splitlines()]
