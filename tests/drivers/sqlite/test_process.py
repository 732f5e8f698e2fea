"""Processes: who is certainly dead, and who may be alive."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from everlog.drivers.process import Process, is_dead, this_process

linux = pytest.mark.skipif(sys.platform != "linux", reason="start times and namespaces are of Linux")


def ended() -> Process:
    """Return a process that ran, and was reaped."""
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    return replace(this_process(), pid=child.pid)


def test_this_process_is_the_same_each_time_and_alive() -> None:
    assert this_process() == this_process()
    assert not is_dead(this_process(), seen_from=this_process())


def test_a_process_that_ended_is_dead() -> None:
    assert is_dead(ended(), seen_from=this_process())


def test_a_process_of_another_boot_or_namespace_may_be_alive() -> None:
    assert not is_dead(replace(ended(), boot="another"), seen_from=this_process())
    assert not is_dead(replace(ended(), namespace="another"), seen_from=this_process())


@linux
def test_a_number_that_was_given_to_another_process_is_a_dead_one() -> None:
    assert is_dead(replace(this_process(), start=1), seen_from=this_process())


@linux
def test_a_zombie_is_dead() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert is_dead(replace(this_process(), pid=child.pid), seen_from=this_process())


@linux
def test_a_name_with_spaces_and_parentheses_is_read_past() -> None:
    code = "import sys; open('/proc/self/comm', 'w').write(') R 1 (x'); print('named', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert not is_dead(replace(this_process(), pid=child.pid, start=0), seen_from=this_process())
        assert child.stdin is not None
        child.stdin.close()


@linux
def test_a_start_that_was_not_known_tells_nothing() -> None:
    assert not is_dead(replace(this_process(), start=0), seen_from=this_process())
