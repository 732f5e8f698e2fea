"""A worker finds the line to its supervisor, and ends with it. What goes over the line shows in `test_supervisor.py`."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.cli.shop import PATIENCE_S

from everlog import Settings
from everlog.cli.pulse import Pulse, variables
from everlog.clock import SystemClock
from everlog.errors import StartRefused


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The supervisor's end of a line, and the worker's."""
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE_S)
    with ours, theirs:
        yield ours, theirs


def pulse_of(environ: dict[str, str], theirs: socket.socket) -> Pulse:
    """Return the pulse of a worker with this environment, which takes the line over."""
    pulse = Pulse.of(environ, SystemClock())
    assert pulse is not None
    pulse._line.detach()
    pulse._line = theirs
    return pulse


@pytest.mark.parametrize("introduces", [True, False])
def test_a_worker_finds_its_number_and_its_line_in_the_environment(
    ends: tuple[socket.socket, socket.socket], introduces: bool
) -> None:
    ours, theirs = ends
    pulse = pulse_of({**variables(3, theirs, introduces=introduces), "PATH": "/bin"}, theirs)
    assert (pulse.number, pulse.introduces) == (3, introduces)
    pulse.running()
    assert ours.recv(10) == b"."


def test_what_a_worker_starts_is_no_worker(ends: tuple[socket.socket, socket.socket]) -> None:
    environ = dict(variables(3, ends[1], introduces=False))
    pulse_of(environ, ends[1])
    assert environ == {"EVERLOG_WORKER": "3"}
    assert Pulse.of(environ, SystemClock()) is None
    assert Settings().from_env(environ) == Settings()


@pytest.mark.parametrize("text", ["", "x", "-1", "1000000"])
def test_a_line_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(StartRefused, match="EVERLOG_SUPERVISOR"):
        Pulse.of({"EVERLOG_SUPERVISOR": text, "EVERLOG_WORKER": "1"}, SystemClock())


HANGS = """
import os, signal, sys, time
from everlog.cli import pulse
from everlog.clock import SystemClock

pulse.MARGIN_S = 0.1
signal.signal(signal.SIGTERM, lambda *_: print("told to stop", flush=True))
pulse.Pulse.of(os.environ, SystemClock()).attend(lease_s=0.1, grace_s=0.1)
print("hangs", flush=True)
while True:
    time.sleep(3_600)
"""


def test_a_worker_that_hangs_is_told_to_stop_and_then_ends_when_its_supervisor_is_gone(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    with subprocess.Popen(
        [sys.executable, "-c", HANGS],
        stdout=subprocess.PIPE,
        env=dict(variables(1, theirs, introduces=False)),
        pass_fds=[theirs.fileno()],
        text=True,
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "hangs\n"
        ours.close()
        assert worker.wait(PATIENCE_S) == 1
        assert worker.stdout.read() == "told to stop\n"
