"""The pure decisions of subscriptions: retries, shares, progress, names of states and keys."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, cast
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.subscriptions.world import Left

from everlog import App, Delivery, Retry, Tx
from everlog.errors import DeclarationError, TxRefused
from everlog.position import Offset, TopicPartition
from everlog.store import Progress, Survey
from everlog.subscriptions.failure import TRACE_BYTES, describe
from everlog.subscriptions.progress import PartitionProgress
from everlog.subscriptions.run import Run
from everlog.subscriptions.slots import balance
from everlog.subscriptions.state import State, key_of, key_text

# ---- retries ----


@pytest.mark.parametrize(
    ("attempt", "delay_s"),
    [
        (1, 0.5),
        (2, 1.0),
        (3, 2.0),
        (4, 3.0),  # capped: would be 4.0
        (5, None),  # that was the last one
        (99, None),
    ],
)
def test_the_longest_pause_doubles_up_to_the_cap_and_the_last_attempt_has_none(attempt: int, delay_s: float | None) -> None:
    assert Retry(attempts=5, first_s=0.5, most_s=3).delay_s(attempt, random=lambda: 1.0) == delay_s


@given(st.integers(1, 5_000), st.floats(0, 1, exclude_max=True))
def test_a_pause_is_between_nothing_and_the_longest(attempt: int, dice: float) -> None:
    delay_s = Retry(attempts=10_000, first_s=0.2, most_s=30).delay_s(attempt, random=lambda: dice)
    assert delay_s is not None
    assert 0 <= delay_s <= min(30, 0.2 * 2.0 ** min(attempt - 1, 60))


def test_the_defaults_give_up_after_about_a_minute() -> None:
    retry = Retry()
    longest = [retry.delay_s(attempt, random=lambda: 1.0) for attempt in range(1, 13)]
    assert longest[-1] is None
    assert 60 <= sum(delay or 0 for delay in longest) * 0.5 <= 120  # full jitter halves it on average


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"first_s": -1}, {"first_s": 40}, {"most_s": 0.1}])
def test_a_retry_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError):
        Retry(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"start": "yesterday"},
        {"start": datetime(2026, 1, 1)},  # noqa: DTZ001 that is the fault
        {"concurrency": 0},
        {"time_limit_s": 0},
        {"on_error": {ValueError: "ignore"}},
        {"on_error": {int: "park"}},
        {"on_gap": "skip"},
    ],
)
def test_a_delivery_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError):
        Delivery(**wrong)


def test_the_policy_of_the_closest_class_wins() -> None:
    exact = Retry(attempts=2)
    delivery = Delivery(
        start=datetime(2026, 1, 1, tzinfo=UTC), on_error={Exception: "park", OSError: "skip", ConnectionError: exact}
    )
    assert delivery.policy(ConnectionResetError()) is exact
    assert delivery.policy(TimeoutError()) == "skip"
    assert delivery.policy(ValueError()) == "park"
    assert Delivery().policy(ValueError()) == Retry()


# ---- shares ----


class Member:
    """A member as the store sees it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.owned: set[int] = set()


def survey_of(members: list[Member], count: int) -> Survey:
    owners: dict[int, int | None] = dict.fromkeys(range(count))
    for member in members:
        owners.update(dict.fromkeys(member.owned, member.number))
    return Survey(sorted(member.number for member in members), owners)


def settle_once(member: Member, members: list[Member], count: int) -> bool:
    move = balance(survey_of(members, count), me=member.number, count=count, owned=sorted(member.owned))
    assert set(move.give) <= member.owned
    assert not set(move.take) & {number for other in members for number in other.owned}
    assert not (move.give and move.take)
    if move.give:
        assert any(len(other.owned) < -(-count // len(members)) for other in members if other is not member), (
            "nobody would take it"
        )
    member.owned -= set(move.give)
    member.owned |= set(move.take)
    return bool(move.give or move.take)


@given(st.integers(1, 24), st.lists(st.tuples(st.sampled_from(["join", "leave", "settle"]), st.integers(0, 10)), max_size=30))
def test_shares_converge_through_joins_and_leaves_and_differ_by_at_most_one(count: int, steps: list[tuple[str, int]]) -> None:
    members = [Member(1)]
    next_number = 2
    for what, at in steps:
        if what == "join":
            members.append(Member(next_number))
            next_number += 1
        elif what == "leave" and len(members) > 1:
            members.pop(at % len(members))
        else:
            settle_once(members[at % len(members)], members, count)
    for _ in range(3 * len(members)):
        if not any([settle_once(member, members, count) for member in members]):
            break
    else:
        pytest.fail("members still take and give")
    shares = [len(member.owned) for member in members]
    assert sum(shares) == count
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize(
    ("members", "owners", "me", "owned", "take", "give"),
    [
        ([1], {}, 1, [], [0, 1, 2, 3], []),
        ([1, 2], {0: 1, 1: 1, 2: 1, 3: 1}, 1, [0, 1, 2, 3], [], [2, 3]),
        ([1, 2], {0: 1, 1: 1, 2: 1, 3: 1}, 2, [], [], []),  # nothing is free yet
        ([1, 2], {0: 1, 1: 1, 2: None, 3: None}, 2, [], [2, 3], []),
        ([1, 2, 3], {0: 1, 1: 1, 2: 2, 3: 3}, 1, [0, 1], [], []),  # the lowest number has one more
        ([2], {0: 1, 1: None}, 2, [], [1, 2, 3], []),  # the owner of 0 handles fewer types, say
        ([1, 2], {0: None}, 3, [], [], []),  # others handle more types
        ([2], {0: 1, 1: 1, 2: None}, 1, [0, 1], [], [0, 1]),
    ],
)
def test_balance(
    members: list[int], owners: dict[int, int | None], me: int, owned: list[int], take: list[int], give: list[int]
) -> None:
    assert balance(Survey(members, owners), me=me, count=4, owned=owned) == (take, give)


# ---- progress ----

WHERE = TopicPartition("t", 0)


def run_of(first: int, count: int) -> Run:
    """A stand-in for a run: what progress asks of one."""

    class Fake:
        open = 0
        is_taken = False
        taken: int | None = None
        chunk = range(first, first + count)

    return cast("Run", Fake())


def test_progress_names_what_is_taken_and_not_finished() -> None:
    progress = PartitionProgress(Progress(WHERE, Offset(9), []))
    run = run_of(10, 5)
    progress.begin(run)
    for offset in (10, 11, 12):
        progress.take(Offset(offset), run)
    cast("Any", run).taken = 13
    progress.done(Offset(11))
    assert progress.snapshot(set()) == Progress(WHERE, Offset(13), [Offset(10), Offset(12)])
    assert progress.snapshot({Offset(10)}) == Progress(WHERE, Offset(13), [Offset(12)])
    assert run.open == 2


def test_progress_resumes_before_the_first_unfinished_record_and_wants_only_the_unfinished() -> None:
    progress = PartitionProgress(Progress(WHERE, Offset(20), [Offset(7), Offset(15)]))
    assert progress.start == 6
    assert [offset for offset in range(5, 24) if progress.wants(Offset(offset))] == [7, 15, 21, 22, 23]
    assert progress.snapshot(set()) == Progress(WHERE, Offset(20), [Offset(7), Offset(15)])


# ---- states and their keys ----


@pytest.mark.parametrize("name", ["stock", "stock/0", "stock/x", "/1", "a b/1", "stock/01", ""])
def test_a_state_needs_a_name_with_a_version(name: str) -> None:
    with pytest.raises(DeclarationError, match="version"):
        State(name, int, subscription="a")


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (int, "1"),
        (int, True),
        (int, 1.5),
        (str, UUID(int=1)),
        (str, Decimal(1)),
        (float, float("nan")),
        (float, float("inf")),
        (float | None, float("nan")),
        (list[int], ["1"]),
        (dict[str, int], {"a": None}),
        (tuple[int, ...], [1, 2]),
        (Decimal, Decimal("NaN")),
        (str, "\ud800"),
        (Annotated[datetime, msgspec.Meta(tz=True)], "2026-01-01"),
    ],
)
def test_a_value_of_another_type_is_refused(type_: Any, value: object) -> None:
    with pytest.raises(TxRefused, match="expected a value"):
        State("s/1", type_, subscription="a").encode(value)


parts = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.integers(-(2**63), 2**63 - 1))


@given(st.lists(parts, max_size=4).map(tuple))
def test_a_key_comes_back_from_its_text(key: tuple[str | int, ...]) -> None:
    assert key_of(key_text(key)) == key


@given(st.lists(parts, min_size=1, max_size=3).map(tuple), st.lists(parts, min_size=1, max_size=3).map(tuple))
def test_two_keys_have_one_text_only_if_they_are_the_same(first: tuple[str | int, ...], second: tuple[str | int, ...]) -> None:
    assert (key_text(first) == key_text(second)) == (first == second)


def test_a_single_value_is_the_tuple_of_it_and_a_uuid_is_its_text() -> None:
    number = UUID(int=7)
    assert key_text("a") == key_text(("a",)) == '["a"]'
    assert key_text(number) == key_text(str(number))
    assert key_text(("a", 1)) == '["a",1]'


@pytest.mark.parametrize("key", [None, True, 1.5, ("a", None), ["a"], "\ud800", ("a", ("b",)), b"a"])
def test_what_cannot_be_a_key_is_refused(key: Any) -> None:
    with pytest.raises(TxRefused):
        key_text(key)


# ---- failures ----


def test_a_failure_is_one_line_and_the_end_of_its_trace() -> None:
    def deep(n: int) -> None:
        if n:
            deep(n - 1)
        raise ValueError("first\n  second " + "ä" * 9_000)

    with pytest.raises(ValueError, match="first") as caught:
        deep(50)
    line, trace = describe(caught.value)
    assert line.startswith("ValueError: first second ää")
    assert len(line) == 500
    assert len(trace.encode()) <= TRACE_BYTES + 3
    assert trace.startswith("…")
    assert describe(KeyError())[0] == "KeyError"


# ---- declarations of handlers ----


def test_a_handler_that_cannot_be_one_is_refused_when_it_is_declared() -> None:
    app = App("app")
    with pytest.raises(DeclarationError, match="is a generator"):

        @app.on(Left)
        async def generator(event: Left) -> Any:
            yield event

    with pytest.raises(DeclarationError, match="positionally"):

        @app.on(Left)  # type: ignore[arg-type]
        async def three(event: Left, tx: Tx, more: int) -> None: ...

    with pytest.raises(DeclarationError, match="positionally"):

        @app.on(Left)  # type: ignore[arg-type]
        async def named(event: Left, *, tx: Tx) -> None: ...

    with pytest.raises(DeclarationError, match="no contract"):

        @app.on(int)  # type: ignore[type-var]
        async def number(event: int) -> None: ...

    with pytest.raises(DeclarationError, match="at least one"):

        @app.on()
        async def nothing(event: Left) -> None: ...

    with pytest.raises(DeclarationError, match="returns"):

        @app.on(Left)  # type: ignore[type-var]
        async def returns(event: Left) -> int:
            return 1

    @app.on(Left)
    async def first(event: Left) -> None: ...

    with pytest.raises(DeclarationError, match=r"handled by .*first.* already.*subscription"):

        @app.on(Left)
        async def second(event: Left) -> None: ...


def test_a_declaration_is_refused_by_what_is_wrong_with_it() -> None:
    app = App("app")
    with pytest.raises(DeclarationError, match="handles nothing"):
        app.declaration()
    app.state("s/1", int)
    with pytest.raises(DeclarationError, match="declared already"):
        app.state("s/1", int)
    other = app.subscription("other")
    other.state("s/1", int)
    with pytest.raises(DeclarationError, match="two subscriptions"):
        app.declaration()
    with pytest.raises(DeclarationError, match="already"):
        app.subscription("other")
    with pytest.raises(DeclarationError, match="app name"):
        App("no spaces")


def test_a_state_whose_values_cannot_be_read_back_is_refused_when_it_is_declared() -> None:
    with pytest.raises(DeclarationError, match="JSON"):
        App("b").state("t/1", complex)
