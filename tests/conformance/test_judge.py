"""The judge: a history in which all held is clean, and each promise that is broken is named with its event."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from everlog.conformance.history import Effect, History, Told
from everlog.conformance.judge import Rule, judge
from everlog.position import TopicPartition

ORDERS = TopicPartition("orders", 0)
OTHERS = TopicPartition("orders", 1)
DONE = TopicPartition("done", 0)
EVENTS = range(6)


def key_of(event: int) -> str:
    return "ab"[event % 2]


def clean() -> History:
    """Six events of two keys by one sender, read by two readers, handled by one subscription, which emits one for each."""
    history = History()
    history.subscribes("app", ["orders"])
    for event in EVENTS:
        history.sends("sender", event, "orders", key_of(event))
        history.told(event, Told.STORED, ORDERS, event)
        history.read("follower", ORDERS, event, event, key_of(event))
        history.ran("app 1", event, key_of(event), event, event + 1)
        history.emits("app", event, f"done {event}")
        history.read("final", DONE, event, f"done {event}", key_of(event))
    for event in EVENTS:
        history.read("final", ORDERS, event, event, key_of(event))
    for key in "ab":
        history.applied("app", key, [Effect(event, 1) for event in EVENTS if key_of(event) == key])
    return history


def test_a_history_in_which_all_held_is_clean() -> None:
    assert judge(clean()) == []


def test_what_was_refused_or_is_unknown_and_not_there_is_clean() -> None:
    history = clean()
    history.sends("sender", 6, "orders", "a")
    history.told(6, Told.REFUSED)
    history.sends("sender", 7, "orders", "a")
    history.told(7, Told.UNKNOWN)
    history.sends("sender", 8, "orders", "a")  # killed before it was told
    assert judge(history) == []


def test_what_waits_is_handled_by_nobody_and_need_not_be() -> None:
    history = clean()
    history.applied("app", "a", [Effect(0, 1)])
    history.held("app", 2)
    history.held("app", 4)
    for event in (2, 4):
        del history.emitted[f"done {event}"]
        history.readings["final", DONE] = [seen for seen in history.readings["final", DONE] if seen.event != f"done {event}"]
    assert judge(history) == []


def test_what_retention_deleted_before_the_last_reading_is_not_lost() -> None:
    history = clean()
    history.gone(ORDERS, 2)
    for reader in ("follower", "final"):
        history.readings[reader, ORDERS] = [seen for seen in history.readings[reader, ORDERS] if seen.offset > 2]
    assert judge(history) == []


def test_what_a_reader_of_everything_was_not_given_was_never_there() -> None:
    history = clean()
    history.reads_all("follower")
    history.gone(ORDERS, 5)
    for reader in ("follower", "final"):
        del history.readings[reader, ORDERS][3]
    assert {fault.rule for fault in judge(history) if fault.event == 3} == {Rule.LOST, Rule.PHANTOM}


def test_an_event_under_a_later_epoch_of_another_slot_says_nothing_of_this_one() -> None:
    history = clean()
    history.sends("other", 10, "orders", "z")
    history.read("final", OTHERS, 0, 10, "z")
    history.applied("app", "both", [Effect(10, 9), Effect(4, 1)])
    history.applied("app", "a", [Effect(0, 1), Effect(2, 1)])
    assert judge(history) == []


def lost(history: History) -> None:
    for reader in ("follower", "final"):
        del history.readings[reader, ORDERS][3]
    history.applied("app", "b", [Effect(1), Effect(5)])
    del history.emitted["done 3"]
    del history.readings["final", DONE][3]


def emission_lost(history: History) -> None:
    del history.readings["final", DONE][3]


def doubled_in_the_log(history: History) -> None:
    history.read("final", ORDERS, 6, 3, "b")


def doubled_effect(history: History) -> None:
    history.applied("app", "b", [Effect(1), Effect(3), Effect(5), Effect(3)])


def effect_and_held(history: History) -> None:
    history.held("app", 3)


def doubled_reading(history: History) -> None:
    history.read("late", ORDERS, 3, 3, "b")
    history.read("late", ORDERS, 3, 3, "b")


def reordered_by_the_log(history: History) -> None:
    history.sent[3] = history.sent[3]._replace(number=100)
    # Event 5, of the same key, was sent before and stands behind.
    history.sent[5] = history.sent[5]._replace(number=50)


def reordered_effects(history: History) -> None:
    history.applied("app", "b", [Effect(1), Effect(5), Effect(3)])


def reordered_reading(history: History) -> None:
    history.read("late", ORDERS, 4, 4, "a")
    history.read("late", ORDERS, 3, 3, "b")


def told_another_offset(history: History) -> None:
    history.told(3, Told.STORED, ORDERS, 2)


def read_another_event(history: History) -> None:
    history.read("early", ORDERS, 2, 3, "b")
    for reader in ("follower", "final"):
        del history.readings[reader, ORDERS][3]


def refused_and_there(history: History) -> None:
    history.told(3, Told.REFUSED)


def sent_by_nobody(history: History) -> None:
    del history.sent[3]


def effect_of_nothing(history: History) -> None:
    history.applied("app", "c", [Effect(3), Effect(77)])
    history.applied("app", "b", [Effect(1), Effect(5)])


def emission_of_a_rolled_back_effect(history: History) -> None:
    history.applied("app", "b", [Effect(1), Effect(5)])
    history.held("app", 3)


def unseen(history: History) -> None:
    history.applied("app", "b", [Effect(1), Effect(5)])
    del history.emitted["done 3"]
    del history.readings["final", DONE][3]


def skipped_by_a_reader(history: History) -> None:
    del history.readings["follower", ORDERS][3]


def stale(history: History) -> None:
    history.applied("app", "b", [Effect(1, 7), Effect(3, 6), Effect(5, 7)])


def overlap(history: History) -> None:
    history.ran("app 1", 3, "b", 1.5, 1.7)


@pytest.mark.parametrize(
    ("break_it", "rules", "event"),
    [
        (lost, {Rule.LOST}, 3),
        (emission_lost, {Rule.LOST, Rule.UNSEEN}, "done 3"),
        (doubled_in_the_log, {Rule.DOUBLED}, 3),
        (doubled_effect, {Rule.DOUBLED}, 3),
        (effect_and_held, {Rule.DOUBLED}, 3),
        (doubled_reading, {Rule.DOUBLED}, 3),
        (reordered_by_the_log, {Rule.REORDERED}, 5),
        (reordered_effects, {Rule.REORDERED}, 3),
        (reordered_reading, {Rule.REORDERED}, 3),
        (told_another_offset, {Rule.OFFSET_REUSED}, 3),
        (read_another_event, {Rule.OFFSET_REUSED}, 3),
        (refused_and_there, {Rule.PHANTOM}, 3),
        (sent_by_nobody, {Rule.PHANTOM}, 3),
        (effect_of_nothing, {Rule.PHANTOM}, 77),
        (emission_of_a_rolled_back_effect, {Rule.PHANTOM}, "done 3"),
        (unseen, {Rule.UNSEEN}, 3),
        (skipped_by_a_reader, {Rule.UNSEEN}, 3),
        (stale, {Rule.STALE}, 3),
        (overlap, {Rule.OVERLAP}, 3),
    ],
)
def test_each_promise_that_is_broken_is_named_with_its_event(
    break_it: Callable[[History], None], rules: set[Rule], event: int | str
) -> None:
    history = clean()
    break_it(history)
    faults = judge(history)
    assert {fault.rule for fault in faults} <= rules
    assert [fault.event for fault in faults if fault.event == event] != []
    assert all(fault.story and repr(fault.event) in fault.text for fault in faults if fault.event == event)


def test_a_fault_shows_all_that_was_seen_of_its_event() -> None:
    history = clean()
    doubled_effect(history)
    (fault,) = judge(history)
    assert str(fault).splitlines() == [
        "doubled: app shows the effect of event 3 twice: in row 'b' and in 'b'",
        "  sent by sender, as its number 4, to orders under key 'b'",
        "  its producer was told: stored at offset 3 of orders[0]",
        "  read at offset 3 of orders[0], by follower, final",
        "  app 1: handled from 3.000000 to 4.000000",
        "  app: effect 2 of 4 in row 'b', epoch 0, behind 1, before 5",
        "  app: effect 4 of 4 in row 'b', epoch 0, behind 5",
    ]


def test_of_many_faults_of_one_rule_some_are_shown() -> None:
    history = clean()
    history.readings.clear()
    faults = judge(history, most=2)
    assert [fault.rule for fault in faults].count(Rule.LOST) == 2
