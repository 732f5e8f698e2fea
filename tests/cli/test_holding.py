"""Held keys in words."""

from __future__ import annotations

import pytest
from tests.cli.held import record

from everlog.cli.holding import is_full, key_summary, standing_warnings, state, why
from everlog.store import Cause, Held, ParkedKey, SubscriptionStatus
from everlog.subscriptions.holding import ROOM

NOW_US = 1_700_000_000_000_000


def key(cause: Cause = Cause.FAILED, *, due_us: int | None = None, error: str = "KeyError: 'x'") -> ParkedKey:
    held = Held(1, "billing", 0, "k", record(1, "k"), cause, 2, error, "", due_us, NOW_US)
    return ParkedKey("billing", "k", 1, held)


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (Cause.FAILED, "failed: KeyError: 'x'"),
        (Cause.KILLED, "took its process down: KeyError: 'x'"),
        (Cause.UNREADABLE, "cannot be read: KeyError: 'x'"),
    ],
)
def test_the_causes_are_told_apart_in_words(cause: Cause, words: str) -> None:
    assert why(key(cause).first) == words


def test_a_record_that_only_waits_has_no_error() -> None:
    assert why(key(Cause.BEHIND, error="").first) == "waits"


@pytest.mark.parametrize(
    ("cause", "due_us", "shown", "word"),
    [
        (Cause.FAILED, None, "parked", "parked"),
        (Cause.UNREADABLE, None, "parked", "parked"),
        (Cause.FAILED, NOW_US + 12_000_000, "blocked, next in 12 s", "blocked"),
        (Cause.KILLED, NOW_US - 1, "blocked, due now", "blocked"),
        (Cause.BEHIND, None, "next in its queue", "blocked"),
    ],
)
def test_a_blocked_key_says_when_it_is_due(cause: Cause, due_us: int | None, shown: str, word: str) -> None:
    assert state(key(cause, due_us=due_us), NOW_US) == shown
    assert key_summary(key(cause, due_us=due_us))["state"] == word


@pytest.mark.parametrize(
    ("records", "size_bytes", "full"),
    [
        (0, 0, False),
        (ROOM.records // 2, ROOM.size_bytes // 2, False),
        (ROOM.records, 0, True),
        (1, ROOM.size_bytes - 1_000_000, True),  # the largest event has no room any more
    ],
)
def test_a_subscription_is_full_where_the_next_event_may_have_no_room(records: int, size_bytes: int, full: bool) -> None:
    assert is_full(records, size_bytes) is full


def test_a_start_says_what_is_paused_and_what_is_full() -> None:
    fine = SubscriptionStatus("billing", 1, [], 0, 1, 3)
    assert standing_warnings("billing", fine) == []
    bad = SubscriptionStatus("billing", 1, [], 0, 1, ROOM.records, ["the last 3 keys failed\x1b[31m"], 1)
    paused, full = standing_warnings("billing", bad)
    assert paused == "billing is paused, and tries one event now and then: the last 3 keys failed\\x1b[31m"
    assert full.startswith("billing holds 100,000 events (1 bytes), and may hold 100,000")
    assert "everlog parked list billing" in full
