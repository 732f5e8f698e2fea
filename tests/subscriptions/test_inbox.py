"""The inbox: each record of a slot is given out once, in the order in which it was read, whatever is given back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from everlog.subscriptions.inbox import Inbox
from everlog.subscriptions.run import Run


class FakeRun:
    """As much of a run as an inbox looks at: it is its own chunk and partition."""

    def __init__(self, first: int, count: int) -> None:
        self.number = 0
        self.size = count
        self.chunk = self.partition = self
        self.items: Iterator[Any] = ((first + n, None, first + n, None) for n in range(count))
        self.taken: list[int] = []

    def offset(self, index: int) -> int:
        return index

    def take(self, offset: int, run: object) -> None:
        self.taken.append(offset)


def runs_of(sizes: Sequence[int]) -> list[Run]:
    starts = [sum(sizes[:at]) for at in range(len(sizes))]
    return [cast("Run", FakeRun(start, size)) for start, size in zip(starts, sizes, strict=True)]


@given(
    sizes=st.lists(st.integers(0, 5), max_size=8),
    steps=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6), st.booleans()), max_size=60),
)
def test_each_record_is_given_out_once_in_order_whatever_is_given_back(
    sizes: list[int], steps: list[tuple[int, int, bool]]
) -> None:
    begun: list[Run] = []
    ended: list[Run] = []
    inbox = Inbox(begun.append, ended.append)
    waiting = runs_of(sizes)
    everything = list(waiting)
    kept: list[int] = []
    for most, back, reads in steps:
        if reads and waiting:
            inbox.put(waiting.pop(0))
        group = [one for _ in range(most) if (one := inbox.take()) is not None]
        at = max(0, len(group) - back)
        inbox.give_back(group[at:])
        kept.extend(one.event for one in group[:at])
        assert kept == list(range(len(kept)))
        assert begun == everything[: len(begun)]
        assert ended == everything[: len(ended)]
    for run in waiting:
        inbox.put(run)
    while (one := inbox.take()) is not None:
        kept.append(one.event)
    assert kept == list(range(sum(sizes)))
    assert inbox.is_empty
    assert begun == ended == everything
    assert [offset for run in everything for offset in cast("FakeRun", run).taken] == list(range(sum(sizes)))


async def test_what_is_closed_gives_back_the_runs_that_are_left_and_wakes_who_waits() -> None:
    inbox = Inbox(lambda _: None, lambda _: None)
    first, second, third = runs_of([1, 2, 1])
    for run in (first, second, third):
        inbox.put(run)
    for _ in range(2):
        assert inbox.take() is not None
    assert inbox.size == third.size
    assert inbox.close() == [second, third]
    await asyncio.wait_for(inbox.wait(), 1)


async def test_who_waits_is_woken_by_what_comes() -> None:
    inbox = Inbox(lambda _: None, lambda _: None)
    woken = asyncio.ensure_future(inbox.wait())
    await asyncio.sleep(0)
    assert not woken.done()
    (run,) = runs_of([1])
    inbox.put(run)
    await asyncio.wait_for(woken, 1)
