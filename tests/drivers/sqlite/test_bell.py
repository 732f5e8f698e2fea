"""The bell: who waits is woken, in this process and in others, and nothing that was rung is missed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from everlog.drivers.sqlite.bell import Bell

T = TypeVar("T")


async def at_once(awaitable: Awaitable[T]) -> T:
    async with asyncio.timeout(3):  # below the backstop of 5 s
        return await awaitable


@asynccontextmanager
async def listening(path: Path | None) -> AsyncGenerator[Bell]:
    bell = Bell(path)
    bell.listen()
    try:
        yield bell
    finally:
        bell.close()


async def test_a_new_bell_was_never_rung(tmp_path: Path) -> None:
    async with listening(tmp_path / "bell") as bell:
        assert (bell.number(), bell.strokes) == (0, 0)


async def test_it_carries_the_number_of_the_last_commit(tmp_path: Path) -> None:
    async with listening(tmp_path / "bell") as one, listening(tmp_path / "bell") as two:
        one.ring(2**40)
        one.ring(7)
        assert two.number() == 7


async def test_ringing_wakes_who_waits(tmp_path: Path) -> None:
    async with listening(tmp_path / "bell") as one, listening(tmp_path / "bell") as two:
        waiting = [asyncio.ensure_future(bell.wait(bell.strokes)) for bell in (one, two, two)]
        await asyncio.sleep(0)
        one.ring(1)
        await at_once(asyncio.gather(*waiting))


async def test_another_process_wakes_who_waits(tmp_path: Path) -> None:
    rings = "import sys; from pathlib import Path; from everlog.drivers.sqlite.bell import Bell; Bell(Path(sys.argv[1])).ring(5)"
    async with listening(tmp_path / "bell") as bell:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", rings, str(tmp_path / "bell"))
        await at_once(bell.wait(0))
        await process.wait()
        assert bell.number() == 5


async def test_a_stroke_between_looking_and_waiting_is_not_missed(tmp_path: Path) -> None:
    async with listening(tmp_path / "bell") as bell:
        strokes = bell.strokes
        bell.ring(1)
        await at_once(bell.wait(strokes))
        await at_once(bell.wait(strokes))  # it stays heard until the count is read again
        assert bell.strokes > strokes


async def test_the_event_loop_is_not_woken_before_somebody_waits_and_nothing_is_missed_by_that(tmp_path: Path) -> None:
    async with listening(tmp_path / "bell") as bell:
        bell.ring(1)
        await asyncio.sleep(0.01)  # the kernel tells at once
        assert bell.strokes == 0
        await at_once(bell.wait(0))
        assert bell.strokes == 1


async def test_a_bell_nobody_waited_for_is_closed_in_order(tmp_path: Path) -> None:
    async with listening(tmp_path / "bell") as bell:
        bell.ring(1)
    await at_once(bell.wait(bell.strokes, seconds=0.001))


async def test_waiting_ends_after_its_seconds(tmp_path: Path) -> None:
    async with listening(tmp_path / "bell") as bell:
        await at_once(bell.wait(bell.strokes, seconds=0.001))


async def test_a_waiter_that_was_cancelled_is_forgotten(tmp_path: Path) -> None:
    async with listening(tmp_path / "bell") as bell:
        waiting = asyncio.ensure_future(bell.wait(bell.strokes))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert not bell._waiters


async def test_closing_wakes_who_waits_and_may_be_repeated(tmp_path: Path) -> None:
    async with listening(tmp_path / "bell") as bell:
        waiting = asyncio.ensure_future(bell.wait(bell.strokes))
        await asyncio.sleep(0)
        bell.close()
        await at_once(waiting)


async def test_in_memory_it_is_heard_from_other_threads() -> None:
    async with listening(None) as bell:
        waiting = asyncio.ensure_future(bell.wait(bell.strokes))
        await asyncio.sleep(0)
        thread = threading.Thread(target=bell.ring, args=(1,))
        thread.start()
        await at_once(waiting)
        thread.join()


def test_its_file_is_its_owners_alone(tmp_path: Path) -> None:
    Bell(tmp_path / "bell").close()
    assert (tmp_path / "bell").stat().st_mode & 0o777 == 0o600


def test_it_needs_no_event_loop_to_ring(tmp_path: Path) -> None:
    rings = "import sys; from pathlib import Path; from everlog.drivers.sqlite.bell import Bell; Bell(Path(sys.argv[1])).ring(5)"
    subprocess.run([sys.executable, "-c", rings, str(tmp_path / "bell")], check=True)
    bell = Bell(tmp_path / "bell")
    assert bell.number() == 5
    bell.close()
