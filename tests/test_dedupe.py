"""Dedupe by membership, against a model that remembers every number."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from everlog.dedupe import Seen, Verdict
from everlog.log import DEDUPE_RANGE


class Naive:
    """The same rules over a set of all numbers ever taken."""

    def __init__(self) -> None:
        self.taken: set[int] = set()
        self.highest = -1

    def take(self, numbers: list[int]) -> None:
        self.taken.update(numbers)
        self.highest = max([self.highest, *numbers])

    def judge(self, number: int) -> Verdict:
        if number <= self.highest - DEDUPE_RANGE:
            return Verdict.BELOW
        return Verdict.SEEN if number in self.taken else Verdict.NEW


# Near the ends of ranges that begin at 0, so that few steps reach the corners.
numbers = (
    st.integers(0, 30)
    | st.integers(DEDUPE_RANGE - 15, DEDUPE_RANGE + 15)
    | st.integers(2 * DEDUPE_RANGE - 15, 2 * DEDUPE_RANGE + 15)
)
batches = st.lists(st.tuples(numbers, st.integers(1, 12) | st.just(DEDUPE_RANGE + 5)), max_size=12)


@settings(deadline=None)  # a batch longer than the range is thousands of numbers
@given(batches, numbers)
def test_what_was_seen_is_what_a_set_of_all_numbers_says(sent: list[tuple[int, int]], asked: int) -> None:
    seen, naive = Seen(), Naive()
    for start, count in sent:
        verdicts = {number: naive.judge(number) for number in range(start, start + count)}
        runs = seen.new_runs(start, count)
        if Verdict.BELOW in verdicts.values():
            assert runs is None
            continue
        assert runs is not None
        new = [number for low, high in runs for number in range(low, high)]
        assert new == [number for number, verdict in verdicts.items() if verdict is Verdict.NEW]
        for low, high in runs:
            seen.take(low, high)
        naive.take(new)
        assert seen.highest == naive.highest
        assert seen.judge(asked) is naive.judge(asked)


@settings(deadline=None)
@given(batches)
def test_the_missing_ranges_are_ascending_apart_and_within_the_range(sent: list[tuple[int, int]]) -> None:
    seen = Seen()
    for start, count in sent:
        for low, high in seen.new_runs(start, count) or []:
            seen.take(low, high)
        edges = [edge for piece in seen.missing for edge in piece]
        assert edges == sorted(set(edges))
        assert all(seen.highest - DEDUPE_RANGE < edge <= seen.highest for edge in edges)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), min_size=1, max_size=40))
def test_first_occurrences_of_two_gapless_senders_are_in_order(steps: list[tuple[bool, int]]) -> None:
    seen = Seen()
    sent = {True: 0, False: 0}
    stored: list[int] = []
    for sender, count in steps:
        for low, high in seen.new_runs(sent[sender], count) or []:
            seen.take(low, high)
            stored.extend(range(low, high))
        sent[sender] += count
    assert stored == list(range(max(sent.values())))
