"""The turn: one writer at a time, and a mark for who follows one that was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

from everlog.drivers.sqlite.turn import Turn


def test_a_new_turn_is_in_order(tmp_path: Path) -> None:
    turn = Turn(tmp_path / "turn")
    assert turn.take()
    turn.give(in_order=True)
    assert turn.take()
    turn.close()


def test_who_gives_it_back_out_of_order_tells_the_next(tmp_path: Path) -> None:
    one, two = Turn(tmp_path / "turn"), Turn(tmp_path / "turn")
    one.take()
    one.give(in_order=False)
    assert not two.take()
    two.give(in_order=True)
    assert one.take()
    for turn in (one, two):
        turn.close()


def test_taking_waits_until_it_is_given(tmp_path: Path) -> None:
    one, two = Turn(tmp_path / "turn"), Turn(tmp_path / "turn")
    events: list[str] = []
    asks = threading.Event()
    one.take()

    def follow() -> None:
        asks.set()
        two.take()
        events.append("second takes")
        two.give(in_order=True)

    thread = threading.Thread(target=follow)
    thread.start()
    asks.wait()
    events.append("first gives")
    one.give(in_order=True)
    thread.join()
    assert events == ["first gives", "second takes"]
    for turn in (one, two):
        turn.close()


def test_a_holder_that_was_killed_leaves_it_free_and_marked(tmp_path: Path) -> None:
    holder = (
        "import os, signal, sys; from pathlib import Path; from everlog.drivers.sqlite.turn import Turn\n"
        "Turn(Path(sys.argv[1])).take(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", holder, str(tmp_path / "turn")], check=False)
    turn = Turn(tmp_path / "turn")
    assert not turn.take()
    turn.give(in_order=True)
    assert turn.take()
    turn.close()


def test_a_forked_child_does_not_hold_its_parents_turn(tmp_path: Path) -> None:
    turn, other = Turn(tmp_path / "turn"), Turn(tmp_path / "turn")
    turn.take()
    waits, ends = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests' threads
        child = os.fork()
    if child == 0:
        os.close(ends)
        os.read(waits, 1)  # lives until the parent has seen what it wanted to
        os._exit(0)
    turn.close()  # a shared lock would be the child's now
    assert not other.take()
    other.close()
    os.close(ends)
    os.close(waits)
    os.waitpid(child, 0)


def test_closing_twice_is_no_mistake(tmp_path: Path) -> None:
    turn = Turn(tmp_path / "turn")
    turn.close()
    turn.close()


def test_its_file_is_its_owners_alone(tmp_path: Path) -> None:
    Turn(tmp_path / "turn").close()
    assert (tmp_path / "turn").stat().st_mode & 0o777 == 0o600


def test_who_asks_is_noticed_by_all_and_the_mark_stays_as_it_is(tmp_path: Path) -> None:
    one, two = Turn(tmp_path / "turn"), Turn(tmp_path / "turn")
    assert (one.asked(), two.asked()) == (0, 0)
    seen = {two.asked()}
    for _ in range(255):
        one.take()
        one.ask()
        one.give(in_order=True)
        seen.add(two.asked())
    assert seen == set(range(256))
    one.take()
    one.ask()
    one.give(in_order=False)
    assert two.asked() == 0
    assert not two.take()
    for turn in (one, two):
        turn.close()
