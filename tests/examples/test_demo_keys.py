"""The demo's keys, pressed at a terminal: whatever is killed or paused by hand, it adds up; and the terminal is left as it was found."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Generator
from pathlib import Path

import pexpect
import pytest

from demo_keys import keys

DEMO = Path(__file__).parents[2] / "examples" / "shop" / "demo.py"
PATIENCE_S = 60

Start = Callable[..., "pexpect.spawn[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Generator[Start]:
    """Start the demo at a terminal of its own."""
    started: list[pexpect.spawn[str]] = []

    def spawn(*options: str) -> pexpect.spawn[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("EVERLOG_", "SHOP_"))}
        # A shell, because a terminal forgets its modes with its last process.
        script = (
            """trap : INT; before=$(stty -g); sh -c 'echo "pid $$."; exec "$@"' sh "$@"; echo "code $?"; """
            """test "$(stty -g)" = "$before" && echo restored || echo changed"""
        )
        words = ["-c", script, "shell", sys.executable, str(DEMO), "--fast", "--folder", str(tmp_path / "demo"), *options]
        demo: pexpect.spawn[str] = pexpect.spawn(
            "/bin/sh", words, env={**environment, "TERM": "xterm"}, encoding="utf-8", timeout=PATIENCE_S, dimensions=(30, 140)
        )
        started.append(demo)
        return demo

    yield spawn
    for demo in started:
        demo.close(force=True)


def end(demo: pexpect.spawn[str], code: int) -> str:
    """Wait for the end and return what was printed until then."""
    demo.expect_exact(f"code {code}\r\n")
    printed = demo.before or ""
    assert demo.expect_exact(["restored", "changed"]) == 0, printed
    return printed


def test_what_is_killed_and_paused_by_hand_waits_is_made_good_and_adds_up(start: Start) -> None:
    demo = start("--plain", "--play", "--speed", "150")  # two seconds up to act 1
    demo.expect_exact("orders come at")
    demo.send("1p")  # in the way of act 1, which waits for it
    demo.expect_exact("fraud paused by you at order")
    demo.expect_exact("this act needs fraud")
    demo.send("1kp")
    demo.expect_exact("fraud killed by you at order")
    demo.expect_exact("fraud is down already")
    demo.send("4kr")
    demo.expect_exact("supplier started again by you: ")
    demo.send("1r")
    demo.expect_exact("fraud started again by you: ")
    demo.expect_exact("play on")
    demo.send("3k")
    demo.expect(r"inventory killed by you at order [\d,]+: [1-9][\d,]* events wait")
    demo.send("5p3r5x5r2r")  # x is no key
    demo.expect_exact("forecast paused by you")
    demo.expect(r"inventory started again by you: [1-9][\d,]* events waited")
    demo.expect_exact("forecast resumed by you")
    demo.expect_exact("routing restarted by you")
    demo.send("6p")
    demo.expect(r"notify paused by you at order [\d,]+: [1-9][\d,]* events wait")
    demo.send("q")
    demo.expect_exact("you quit")
    printed = end(demo, 0)
    assert re.search(r"notify paused by you at order [\d,]+, resumed by the demo at [\d,]+: [1-9][\d,]* events waited", printed)
    assert "each exactly once" in printed
    assert "\r\nby hand    " in printed
    assert "0 lost, 0 doubled" in printed
    assert "they add up" in printed


def test_somebody_who_quits_early_gets_what_was_placed_counted(start: Start) -> None:
    demo = start()
    demo.expect_exact("act 1 of 3")
    demo.expect_exact("1-7 choose")
    demo.send("\x03")
    demo.expect_exact("you quit")
    printed = end(demo, 0)
    assert "loyalty joined late" not in printed
    assert "they add up" in printed


def test_a_second_ctrl_c_ends_at_once(start: Start) -> None:
    demo = start()
    demo.expect_exact("act 1 of 3")
    demo.send("q")
    demo.expect_exact("you quit")
    demo.send("\x03")
    assert "its processes are gone" in end(demo, 130)


def test_a_terminated_demo_leaves_the_terminal_as_it_was(start: Start) -> None:
    demo = start()
    demo.expect(r"pid (\d+)\.")
    process = int(demo.match.group(1)) if isinstance(demo.match, re.Match) else 0
    demo.expect_exact("orders come at")
    os.kill(process, signal.SIGTERM)
    assert "its processes are gone" in end(demo, 130)


def test_play_without_a_terminal_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, str(DEMO), "--play"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (2, "--play goes on until you press q: it needs a terminal\n")


async def test_keys_come_one_by_one_and_an_error_leaves_the_terminal_as_it_was() -> None:
    above, below = pty.openpty()
    try:
        before = termios.tcgetattr(below)
        pressed: asyncio.Queue[str] = asyncio.Queue()

        async def press() -> None:
            with keys(below, pressed.put_nowait, may_change=lambda terminal: True):
                assert not termios.tcgetattr(below)[3] & (termios.ICANON | termios.ECHO)
                os.write(above, b"3k")
                assert [await pressed.get(), await pressed.get()] == ["3", "k"]
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await press()
        assert termios.tcgetattr(below) == before
    finally:
        os.close(above)
        os.close(below)
