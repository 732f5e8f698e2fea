"""A log or a store that somebody has put back is noticed, and after `everlog restore` nothing that still exists is lost, doubled or out of order.

Each check has a control: without it the same steps end with events that were swallowed or doubled, and the comparison says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.cli.shop import Process, Start
from tests.faults.restored_shop import Restored, key_of


@pytest.fixture
def start() -> Iterator[Start]:
    processes: list[Process] = []

    def make(*arguments: str) -> Process:
        processes.append(Process(*arguments))
        return processes[-1]

    yield make
    for process in processes:
        process.close()


@pytest.fixture
def place(folder: Path, start: Start) -> Restored:
    return Restored(folder, start)


def numbers(pairs: Sequence[tuple[str, int]]) -> list[int]:
    return sorted(n for _, n in pairs)


# ---- an old store ----


def with_an_old_store(place: Restored) -> None:
    """Put a store back that knows 1 to 4, beside a log in which 5 to 8 are billed too."""
    place.publish(1, 2, 3, 4)
    place.work(1, 2, 3, 4)
    place.back_up("old")
    place.publish(5, 6, 7, 8)
    place.work(5, 6, 7, 8)
    place.put_by_hand("old", "chain.db")


def test_a_store_that_was_put_back_is_refused_and_after_restore_nothing_stands_in_the_log_twice(place: Restored) -> None:
    with_an_old_store(place)
    text = place.refused()
    assert "the store is older than the log" in text
    assert "everlog restore chain" in text
    plan = place.restore("chain")
    assert "4 events of its handlers that it does not know" in plan
    assert "4 events in the log are not sent again, and 0 events in the outbox will be sent" in plan
    place.publish(9, 10)
    place.work(5, 6, 7, 8, 9, 10)
    found = place.found()
    assert (found.faults, numbers(found.bills)) == ([], list(range(1, 11)))
    assert len(set(found.ids)) == 10
    assert "fit together" in place.restore("chain")


def with_an_old_store_and_a_trimmed_log(place: Restored) -> None:
    """Put a store back where retention has deleted what it would handle again: what comes next would get the numbers of what is gone."""
    place.publish(1, 2, 3, 4)
    place.work(1, 2, 3, 4)
    place.back_up("old")
    for numbers_of_a_batch in ((5, 6, 7, 8), (9, 10, 11, 12, 13, 14)):  # of the newest batch the log also compares the content
        place.publish(*numbers_of_a_batch)
        place.work(*numbers_of_a_batch)
    place.put_by_hand("old", "chain.db")
    place.everlog("topics", "set", "chain.orders", "--keep-s", "0.001", "--yes")
    place.everlog("topics", "trim")
    place.everlog("topics", "set", "chain.orders", "--keep-s", "none", "--yes")
    place.publish(15, 16, 17)


def test_events_that_were_deleted_meanwhile_take_no_new_ones_with_them(place: Restored) -> None:
    with_an_old_store_and_a_trimmed_log(place)
    place.refused()
    assert "10 events behind its progress were deleted by retention, and are not handled" in place.restore("chain")
    place.work(15, 16, 17)
    found = place.found()
    assert (numbers(found.bills), len(set(found.ids))) == (list(range(1, 18)), 17)


def test_control_without_the_check_new_events_are_taken_for_old_ones(place: Restored) -> None:
    with_an_old_store_and_a_trimmed_log(place)
    place.work(15, 16, 17, module="unchecked:app")
    assert numbers(place.found().bills) == list(range(1, 15))


def test_an_old_store_whose_handlers_publish_nothing_is_refused_and_handles_again_what_came_since(place: Restored) -> None:
    place.publish(1, 2, 3)
    place.work(1, 2, 3, module="chain:quiet")
    place.back_up("old", "quiet")
    place.publish(4, 5, 6)
    place.work(4, 5, 6, module="chain:quiet")
    place.put_by_hand("old", "quiet.db")
    assert "has handled 3 events before that its store knows nothing of" in place.refused("chain:quiet")
    plan = place.restore("quiet")
    assert "the log, which says that the app has handled 3 events more" in plan
    assert "3 events will be handled, some of them perhaps again" in plan
    place.work(4, 5, 6, module="chain:quiet")
    assert place.found("noted/1", "quiet").seen == {"k1": [1, 4], "k2": [2, 5], "k0": [3, 6]}
    assert "fit together" in place.restore("quiet")


def with_a_store_and_then_a_log_put_back(place: Restored) -> None:
    """Put a store back, and then the log too, so that what the store was told is in the log is not there any more."""
    place.publish(1, 2, 3)
    place.work(1, 2, 3)
    place.back_up("old")
    place.publish(4, 5, 6, 7, 8, 9)
    place.work(4, 5, 6, 7, 8, 9)
    place.restore("chain", "--from", "old/chain.db")
    place.restore("--from", "old/log.db")


def test_a_log_that_is_put_back_behind_its_store_is_refused_and_nothing_that_is_published_again_is_lost(place: Restored) -> None:
    with_a_store_and_then_a_log_put_back(place)
    assert "the log is older than the store" in place.refused()
    assert "0 events in the log are not sent again" in place.restore("chain")
    place.publish(4, 5, 6, 7, 8, 9)
    place.work(4, 5, 6, 7, 8, 9)
    found = place.found()
    assert (found.faults, numbers(found.bills), len(set(found.ids))) == ([], list(range(1, 10)), 9)


def test_a_store_that_is_mended_twice_sends_nothing_twice_and_nothing_is_missing(place: Restored) -> None:
    """In between, part of what the first time remembered was published again, and part was not."""
    place.publish(1, 2, 3)
    place.work(1, 2, 3)
    place.back_up("old")
    place.publish(4, 5, 6)
    place.work(4, 5, 6)
    place.restore("chain", "--from", "old/chain.db")
    place.back_up("mended")
    place.work(4, 5, 6)
    place.publish(7)
    place.work(7)
    place.put_by_hand("mended", "chain.db")
    place.refused()
    assert "4 events in the log are not sent again" in place.restore("chain")
    place.publish(8)
    place.work(4, 5, 6, 7, 8)
    found = place.found()
    assert (found.faults, numbers(found.bills), len(set(found.ids))) == ([], list(range(1, 9)), 8)


def test_a_store_of_an_incarnation_before_the_last_is_refused(place: Restored) -> None:
    place.publish(1, 2)
    place.work(1, 2)
    place.back_up("whole")
    place.publish(3, 4)
    place.work(3, 4)
    place.restore("chain", "--from", "whole/chain.db")
    place.publish(5, 6)
    place.work(3, 4, 5, 6)
    place.put_by_hand("whole", "chain.db")
    place.refused()
    assert "4 events in the log are not sent again" in place.restore("chain")
    place.publish(7)
    place.work(3, 4, 5, 6, 7)
    found = place.found()
    assert (found.faults, numbers(found.bills), len(set(found.ids))) == ([], list(range(1, 8)), 7)


# ---- an old log ----


def with_an_old_log(place: Restored, *since: int) -> None:
    """Put a log back that knows 1 to 4, beside a store that has handled 5 to 8; others have published since."""
    place.publish(1, 2, 3, 4)
    place.work(1, 2, 3, 4)
    place.back_up("old")
    place.publish(5, 6, 7, 8)
    place.work(5, 6, 7, 8)
    place.put_by_hand("old", "log.db")
    if since:
        place.publish(*since)


SINCE = {
    "nothing_came_since": (),
    "a_little_came_since": (11,),
    "the_offsets_fit_again": tuple(range(11, 17)),
    "it_is_longer_than_ever": tuple(range(11, 31)),
}


@pytest.mark.parametrize("since", SINCE.values(), ids=SINCE)
def test_a_log_that_was_put_back_is_refused_however_much_others_have_published(place: Restored, since: tuple[int, ...]) -> None:
    with_an_old_log(place, *since)
    text = place.refused()
    assert "the log is older than the store" in text
    assert "everlog restore chain" in text
    plan = place.restore("chain")
    assert "what it handled beyond stays in its state" in plan
    assert "are lost: neither the log nor the store has them any more" in plan
    place.publish(41, 42, 43)
    place.work(*since, 41, 42, 43)
    found = place.found()
    everything = sorted([1, 2, 3, 4, *since, 41, 42, 43])
    assert (found.faults, numbers(found.orders), numbers(found.bills)) == ([], everything, everything)
    assert sorted(n for of_key in found.seen.values() for n in of_key) == sorted([*everything, 5, 6, 7, 8])


def test_control_without_landmarks_what_others_have_published_is_never_handled(place: Restored) -> None:
    place.publish(1, 2, 3, 4)
    place.work(1, 2, 3, 4, module="chain:quiet")
    place.back_up("old", "quiet")
    place.publish(5, 6, 7, 8)
    place.work(5, 6, 7, 8, module="chain:quiet")
    place.put_by_hand("old", "log.db")
    place.publish(*range(11, 17))
    (place.folder / "blind.py").write_text((place.folder / "blind.py").read_text().replace("import app", "import quiet"))
    assert "the log is older than the store" in place.refused("chain:quiet")
    place.run_once("blind:quiet")
    place.run_once("blind:quiet")  # what one start did not come to, the next one would
    handled = [n for of_key in place.found("noted/1", "quiet").seen.values() for n in of_key]
    assert set(range(11, 17)) - set(handled)


def test_a_service_that_lags_behind_the_backup_is_not_asked_anything(place: Restored) -> None:
    place.publish(1, 2, 3, 4)
    place.work(1, 2, 3, 4, module="chain:quiet")
    place.publish(5)
    place.back_up("old", "quiet")
    place.publish(6, 7)
    place.put_by_hand("old", "log.db")
    place.publish(11, 12)
    place.work(5, 11, 12, module="chain:quiet")


# ---- both, and neither ----


def test_copies_of_different_moments_come_together(place: Restored) -> None:
    place.publish(1, 2)
    place.work(1, 2)
    place.back_up("first")
    place.publish(3, 4)
    place.work(3, 4)
    place.back_up("second")
    place.publish(5, 6)
    place.work(5, 6)
    place.restore("--from", "second/log.db")
    place.restore("chain", "--from", "first/chain.db")
    place.publish(7, 8)
    place.work(3, 4, 7, 8)
    place.restore("--from", "first/log.db")
    assert "the log is older than the store" in place.refused()
    place.restore("chain")
    place.publish(9)
    place.work(9)
    found = place.found()
    assert (found.faults, numbers(found.orders), numbers(found.bills)) == ([], [1, 2, 9], [1, 2, 9])


def delete_the_store(place: Restored) -> None:
    for left in place.files.glob("chain.db*"):
        left.unlink()


def test_a_deleted_store_is_refused_and_after_restore_it_is_built_again_and_nothing_is_published_twice(place: Restored) -> None:
    place.publish(1, 2, 3, 4)
    place.work(1, 2, 3, 4)
    delete_the_store(place)
    assert "everlog restore chain" in place.refused()
    assert "4 events in the log are not sent again" in place.restore("chain")
    place.publish(5)
    place.work(1, 2, 3, 4, 5)
    found = place.found()
    assert (found.faults, numbers(found.bills), len(set(found.ids))) == ([], [1, 2, 3, 4, 5], 5)


def test_control_a_new_store_that_is_only_accepted_publishes_everything_again(place: Restored) -> None:
    place.publish(1, 2, 3, 4)
    place.work(1, 2, 3, 4)
    delete_the_store(place)
    place.refused()
    place.work(1, 2, 3, 4, flags=["--accept-new-store"])
    found = place.found()
    assert any(fault.startswith("doubled") for fault in found.faults)
    assert (len(found.ids), len(set(found.ids))) == (8, 4)
    place.publish(5)
    place.work(5)  # it is accepted once


def test_a_store_that_comes_back_after_another_one_took_its_place_is_refused(place: Restored) -> None:
    place.publish(1, 2)
    place.work(1, 2)
    place.back_up("old")
    delete_the_store(place)
    place.refused()
    place.restore("chain")
    place.publish(3, 4)
    place.work(1, 2, 3, 4)
    place.put_by_hand("old", "chain.db")
    assert "has worked with store" in place.refused()
    place.restore("chain")
    place.publish(5)
    place.work(3, 4, 5)
    found = place.found()
    assert (found.faults, numbers(found.bills), len(set(found.ids))) == ([], [1, 2, 3, 4, 5], 5)
    assert {key_of(n) for n in range(1, 6)} == set(found.seen)


LATE = """
from chain import Delivery, Ordered, App, Tx

late = App("late", delivery=Delivery(start="now"))
noted = late.state("noted/1", list[int])


@late.on(Ordered)
async def note(event: Ordered, tx: Tx) -> None:
    print(f"notes {event.n}", flush=True)
    tx.put(noted, event.id, [*(await tx.get(noted, event.id, list[int]())), event.n])
"""


def with_a_lost_store(place: Restored) -> None:
    """Delete the store of an app that began with what came from then on, while 4 and 5 wait for it."""
    (place.folder / "notes_of_late.py").write_text(LATE)
    place.publish(1)
    place.run_once("notes_of_late:late")
    place.publish(2, 3)
    place.note(2, 3)
    place.publish(4, 5)
    for side in ("", "-wal", "-shm", "-bell"):
        (place.files / f"late.db{side}").unlink(missing_ok=True)
    assert "has worked with store" in place.refused("notes_of_late:late")


def test_an_app_whose_store_was_lost_handles_all_that_the_log_keeps(place: Restored) -> None:
    with_a_lost_store(place)
    assert "subscription late: 5 events will be handled" in place.restore("late")
    place.note(1, 2, 3, 4, 5)
    assert place.found("noted/1", "late").seen == {"k0": [3], "k1": [1, 4], "k2": [2, 5]}


def test_an_app_whose_store_was_lost_can_go_on_where_it_had_come_to_and_misses_nothing_since(place: Restored) -> None:
    with_a_lost_store(place)
    assert "subscription late: 2 events will be handled" in place.restore("late", "--begin", "reported")
    place.note(4, 5)
    assert place.found("noted/1", "late").seen == {"k1": [4], "k2": [5]}
    place.everlog("restore", "late", "--begin", "nowhere", code=2)
