"""Caution, played through: a slot whose owner dies with every group that a killer is in, and whoever takes over from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from everlog.position import Offset, TopicPartition
from everlog.store import Attempt, Progress
from everlog.subscriptions.caution import Caution
from everlog.subscriptions.lane import Waiting
from everlog.subscriptions.progress import PartitionProgress

WHERE = TopicPartition("t", 0)


class Life:
    """One owner of a slot of one partition, from its takeover until its death or the end of the caution."""

    def __init__(self, played: Played) -> None:
        self.played = played
        unfinished = [Offset(offset) for offset in range(played.through + 1) if offset not in played.finished]
        self.partition = PartitionProgress(Progress(WHERE, Offset(played.through), unfinished))
        self.waiting = [offset for offset in range(played.count) if self.partition.wants(Offset(offset))]
        self.run = SimpleNamespace(taken=None, open=0, is_taken=False, chunk=SimpleNamespace(where=WHERE, offset=Offset))
        self.partition.run = cast("Any", self.run)
        self.caution = Caution({WHERE: self.partition}, {WHERE: Offset(played.count - 1)}, played.row, played.most)

    def take(self) -> list[int]:
        """Take the next group from the log."""
        group, self.waiting = self.waiting[: self.caution.limit], self.waiting[self.caution.limit :]
        for offset in group:
            self.partition.resuming.discard(Offset(offset))
            self.partition.take(Offset(offset), cast("Any", self.run))
            self.run.taken = Offset(offset)
        if not self.waiting:
            self.run.taken = Offset(self.played.count - 1)
        self.played.through = max(self.played.through, self.partition.taken)
        return group

    def finish(self, group: Sequence[int]) -> None:
        self.played.finished.update(group)
        for offset in group:
            self.partition.done(Offset(offset))
        self.played.row = self.caution.left()

    def goes_well(self) -> bool:
        """Work until the caution is over; ``False`` where a killer has ended it."""
        played = self.played
        while not self.caution.is_over:
            group = self.take()
            assert group, "nothing is left to take, and the caution goes on"
            run = cast("Any", self.run)
            is_blamed = [self.caution.took(Waiting(run, offset, None, cast("Any", None))) for offset in group]
            if is_blamed == [True]:
                played.blamed.extend(group)
            else:
                played.row = Attempt([(WHERE, Offset(offset)) for offset in group])
                played.tried += 1
                if played.killers.intersection(group) or played.tried in played.shot_at:
                    return False
            self.finish(group)
        played.row = None
        return True


class Played:
    """A slot over the lives of its owners. What the first one did was not noted."""

    def __init__(self, count: int, killers: Sequence[int], most: int, *, through: int = -1, shot_at: Sequence[int] = ()) -> None:
        self.count = count
        self.killers = set(killers)
        self.most = most
        self.through = through
        """How far the first owner took records, of which it finished none."""
        self.shot_at = set(shot_at)
        """In which tries of a group somebody kills the owner from outside."""
        self.finished: set[int] = set()
        self.row: Attempt | None = None
        self.blamed: list[int] = []
        self.tried = 0

    def deaths(self, *, most_deaths: int) -> int:
        """Return how many owners die before the caution is over."""
        for deaths in range(most_deaths + 1):
            if Life(self).goes_well():
                assert self.finished == set(range(self.count))
                return deaths
        raise AssertionError(f"more than {most_deaths} die")


@given(
    st.integers(1, 200).flatmap(lambda count: st.tuples(st.just(count), st.integers(0, count - 1))),
    st.integers(1, 64),
    st.integers(-1, 199),
)
def test_a_killer_is_found_by_halving_and_nobody_else_is_blamed(
    count_and_killer: tuple[int, int], most: int, through: int
) -> None:
    count, killer = count_and_killer
    played = Played(count, [killer], most, through=min(through, count - 1))
    assert played.deaths(most_deaths=math.ceil(math.log2(most)) + 1) >= 1
    assert played.blamed == [killer]


@given(
    st.integers(1, 100).flatmap(lambda count: st.tuples(st.just(count), st.sets(st.integers(0, count - 1), max_size=5))),
    st.integers(1, 32),
)
def test_several_killers_are_found_one_after_another(count_and_killers: tuple[int, set[int]], most: int) -> None:
    count, killers = count_and_killers
    played = Played(count, sorted(killers), most)
    played.deaths(most_deaths=len(killers) * (math.ceil(math.log2(most)) + 1))
    assert played.blamed == sorted(killers)


@given(st.integers(1, 100), st.integers(2, 32), st.sets(st.integers(1, 40), max_size=6))
def test_kills_from_outside_blame_at_most_what_ran_alone(count: int, most: int, shot_at: set[int]) -> None:
    played = Played(count, [], most, shot_at=sorted(shot_at))
    assert played.deaths(most_deaths=len(shot_at)) <= len(shot_at)
    assert len(played.blamed) <= len(shot_at)


def test_what_was_left_unfinished_behind_the_head_is_taken_with_caution() -> None:
    played = Played(11, [3], 4, through=10)
    played.finished = set(range(11)) - {3}
    assert not Life(played).caution.is_over
    assert played.deaths(most_deaths=1) == 1
    assert played.blamed == [3]


def test_a_suspect_that_never_comes_again_does_not_keep_the_caution_up() -> None:
    played = Played(4, [], 4)
    played.row = Attempt([(WHERE, Offset(1)), (WHERE, Offset(2))])
    life = Life(played)
    life.waiting.remove(1)  # of a type that the code handles no more
    assert life.goes_well()


def test_a_slot_that_was_given_back_names_all_suspects_so_that_the_last_one_is_not_blamed_untried() -> None:
    played = Played(4, [], 4)
    played.row = Attempt([(WHERE, Offset(0)), (WHERE, Offset(1))])
    life = Life(played)
    first = life.take()
    assert first == [0]
    life.finish(first)
    assert played.row == Attempt([(WHERE, Offset(0)), (WHERE, Offset(1))])
    assert Life(played).caution.blamed is None
    assert Life(played).caution.limit == 1
