"""The suite of the store sees what it is there to see: each bug below is planted, and its case fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.conformance.stores import SqliteUnderTest

from everlog import amount
from everlog.conformance.cases import Broken
from everlog.conformance.store import cases
from everlog.drivers.process import Process
from everlog.drivers.sqlite import backup
from everlog.drivers.sqlite.bell import Bell
from everlog.errors import EverlogError
from everlog.position import Offset
from everlog.rules import applying
from everlog.rules.applying import Span
from everlog.store import HeldKey, Lease, Progress, Put, Slot, Unit
from everlog.stores.sqlite import commit, held, leases, outbox, register, rows, section, store

Plant = Callable[[pytest.MonkeyPatch], None]
CASES = {case.name: case for case in cases()}


def always(answer: object) -> Callable[..., object]:
    """Return a function that looks at nothing."""

    def function(*_: object, **__: object) -> object:
        return answer

    return function


def everything_is_sent_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(outbox, "_drop_sent", always(None))


def numbers_go_on_in_a_new_incarnation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(register, "start_anew", always(None))


def no_epoch_check(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(commit, "is_valid", always(True))


def no_check_at_the_relay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(outbox, "check", always(None))


def reads_are_not_validated(patch: pytest.MonkeyPatch) -> None:
    whole = applying.Rows.apply

    def apply(self: applying.Rows, unit: Unit) -> object:
        unit.reads = {}
        return whole(self, unit)

    patch.setattr(applying.Rows, "apply", apply)


def scans_are_not_validated(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(applying.Rows, "_still_shows", always(True))


def nothing_is_put_back(patch: pytest.MonkeyPatch) -> None:
    whole = applying._unfinished

    def unfinished(progress: Progress, _: set[Offset] | None) -> bytes:
        return whole(progress, None)

    patch.setattr(applying, "_unfinished", unfinished)


def what_is_put_back_replaces_the_rest(patch: pytest.MonkeyPatch) -> None:
    whole = applying._unfinished

    def unfinished(progress: Progress, put_back: set[Offset] | None) -> bytes:
        return whole(Progress(progress.where, progress.through, sorted(put_back)) if put_back else progress, None)

    patch.setattr(applying, "_unfinished", unfinished)


def lanes_are_not_kept(patch: pytest.MonkeyPatch) -> None:
    whole = commit.commit

    def without_lanes(connection: apsw.Connection, units: Sequence[Unit], *rest: Any, now_us: int) -> object:
        for unit in units:
            unit.lane = None
        return whole(connection, units, *rest, now_us=now_us)

    patch.setattr(store, "commit", without_lanes)


def half_a_unit_is_applied(patch: pytest.MonkeyPatch) -> None:
    whole = applying.Rows.apply

    def apply(self: applying.Rows, unit: Unit) -> object:
        for key, write in unit.writes.items():
            if isinstance(write, Put):
                self.changed[key] = (write.value, unit.version)
        return whole(self, unit)

    patch.setattr(applying.Rows, "apply", apply)


def prefixes_match_half_elements(patch: pytest.MonkeyPatch) -> None:
    def naive(prefix: str) -> Span:
        return Span(prefix[:-1], prefix[:-1] + "\U0010ffff", "")

    patch.setattr(rows, "span_of", naive)


def a_bool_counts_as_a_number(patch: pytest.MonkeyPatch) -> None:
    whole = amount.total

    def total(value: bytes | None, added: int | float | Decimal) -> bytes | None:
        return whole(b"1" if value == b"true" else value, added)

    patch.setattr(applying, "total", total)


def a_silent_owner_is_replaced_too_soon(patch: pytest.MonkeyPatch) -> None:
    _stretch_leases(patch, 0.5)


def nobody_is_ever_silent(patch: pytest.MonkeyPatch) -> None:
    _stretch_leases(patch, 1e6)


def _stretch_leases(patch: pytest.MonkeyPatch, factor: float) -> None:
    whole = leases.Now

    def now(seconds: float, lease_s: float, process: Process) -> leases.Now:
        return whole(seconds, lease_s * factor, process)

    patch.setattr(leases, "Now", now)


def no_heartbeat_of_its_own(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(store.SqliteStore, "_heartbeat", always(None))


def a_stuck_loop_keeps_its_slots(patch: pytest.MonkeyPatch) -> None:
    whole = store.SqliteStore._heartbeat

    def heartbeat(self: store.SqliteStore) -> object:
        self.turned()
        return whole(self)

    patch.setattr(store.SqliteStore, "_heartbeat", heartbeat)


def no_bell(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Bell, "ring", always(None))


def the_next_record_of_a_key_stays_parked(patch: pytest.MonkeyPatch) -> None:
    def held_key(key: str, records: int, next_attempt_us: int | None, is_unreadable: bool) -> HeldKey:
        return HeldKey(key, records, next_attempt_us or None, is_unreadable)

    patch.setattr(held, "HeldKey", held_key)


def every_key_is_listed_whatever_is_asked_for(patch: pytest.MonkeyPatch) -> None:
    whole = held.first_of_each

    def first_of_each(*rest: Any, **_: object) -> object:
        return whole(*rest, key=None, type_name=None, error=None)

    patch.setattr(held, "first_of_each", first_of_each)


def a_request_is_for_what_came_since_too(patch: pytest.MonkeyPatch) -> None:
    whole = held.request

    def request(*rest: Any, among: object, **named: Any) -> int:
        return whole(*rest, among=None, **named)

    patch.setattr(held, "request", request)


def nothing_waits_behind_a_refused_row(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(outbox, "_BEHIND", "0")


def numbers_start_anew_with_an_empty_outbox(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(outbox, "issued", always({}))


def a_backup_replaces_what_is_there(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(backup, "_refuse_existing", always(None))
    patch.setattr("os.link", os.replace)


def a_section_forgets_to_undo(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(section.SqliteSection, "undo", section.SqliteSection.keep)


def statements_reach_everything(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(section, "why_refused", always(None))


def a_call_is_done_by_halves(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(section.SqliteSection, "_executed", section.SqliteSection._guarded)


def a_section_waits_for_ever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(section, "_GRACE_S", 4.0)


def a_section_that_nobody_has_goes_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(section.SqliteSection, "opened", _opened_whatever_comes)


async def _opened_whatever_comes(self: section.SqliteSection) -> None:
    await self._opened


def old_code_takes_slots(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(leases, "able", sorted)


def every_lease_is_clean(patch: pytest.MonkeyPatch) -> None:
    whole = Lease

    def lease(slot: Slot, epoch: int, member: int, is_unclean: bool = False) -> Lease:
        return whole(slot, epoch, member)

    patch.setattr(leases, "Lease", lease)


def there_is_always_room(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(applying.Holding, "has_room", always(True))


def an_attempt_needs_no_lease(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(leases, "check", always(None))


PLANTED: Sequence[tuple[Plant, str]] = [
    (no_epoch_check, "who_lost_its_slot_changes_nothing_any_more"),
    (no_epoch_check, "a_released_slot_is_free_at_once_and_the_old_lease_is_void"),
    (no_check_at_the_relay, "only_the_relay_numbers_and_refuses"),
    (reads_are_not_validated, "a_row_that_changed_since_it_was_read_is_a_conflict"),
    (reads_are_not_validated, "units_of_two_members_are_serializable"),
    (scans_are_not_validated, "a_scan_is_validated_over_all_the_rows_that_it_saw"),
    (nothing_is_put_back, "what_a_unit_not_applied_would_have_finished_is_put_back"),
    (what_is_put_back_replaces_the_rest, "what_a_unit_not_applied_would_have_finished_is_put_back"),
    (lanes_are_not_kept, "later_units_of_its_lane_are_dropped_and_other_lanes_are_not"),
    (half_a_unit_is_applied, "a_unit_that_is_not_applied_changes_nothing_at_all"),
    (prefixes_match_half_elements, "a_scan_gives_the_rows_under_whole_elements_of_its_prefix_by_key"),
    (a_bool_counts_as_a_number, "adding_to_what_is_no_number_is_refused"),
    (a_silent_owner_is_replaced_too_soon, "an_owner_is_silent_for_a_whole_lease_before_it_is_replaced"),
    (nobody_is_ever_silent, "an_owner_is_silent_for_a_whole_lease_before_it_is_replaced"),
    (no_heartbeat_of_its_own, "a_busy_event_loop_does_not_cost_the_lease"),
    (a_stuck_loop_keeps_its_slots, "a_loop_that_does_not_turn_loses_its_slots"),
    (no_bell, "releasing_wakes_who_waits"),
    (the_next_record_of_a_key_stays_parked, "a_released_record_makes_the_next_one_of_its_key_due_now"),
    (every_key_is_listed_whatever_is_asked_for, "parked_keys_are_found_by_key_by_type_and_by_error"),
    (a_request_is_for_what_came_since_too, "a_request_is_for_what_was_looked_at_and_for_nothing_that_came_since"),
    (nothing_waits_behind_a_refused_row, "a_refused_row_and_those_of_its_topic_and_key_behind_it_are_left_out"),
    (a_section_forgets_to_undo, "a_piece_that_is_undone_takes_its_units_along_and_leaves_the_others"),
    (statements_reach_everything, "transactions_are_not_a_statements_to_begin_or_end"),
    (a_call_is_done_by_halves, "a_statement_that_fails_changes_nothing_and_what_was_before_stands"),
    (a_section_waits_for_ever, "of_a_piece_that_keeps_the_store_for_too_long_nothing_is_stored"),
    (a_section_that_nobody_has_goes_on, "who_is_cancelled_while_it_waits_for_a_section_keeps_nobody_out"),
    (old_code_takes_slots, "members_whose_types_another_one_exceeds_are_not_in_the_survey_while_it_lives"),
    (every_lease_is_clean, "a_slot_of_a_member_that_is_gone_is_taken_unclean_with_its_attempt"),
    (there_is_always_room, "a_unit_whose_copies_have_no_room_is_not_applied"),
    (an_attempt_needs_no_lease, "who_does_not_own_the_slot_attempts_nothing"),
    (a_backup_replaces_what_is_there, "a_backup_is_one_file_that_replaces_nothing"),
    (everything_is_sent_again, "an_event_that_the_log_has_already_is_not_sent_again"),
    (numbers_go_on_in_a_new_incarnation, "a_new_incarnation_gives_numbers_from_0_in_the_order_of_the_outbox"),
    (numbers_start_anew_with_an_empty_outbox, "rows_that_are_done_go_and_their_numbers_are_never_given_again"),
]


def _name(value: object) -> str:
    return str(getattr(value, "__name__", value))


@pytest.mark.parametrize(("plant", "case"), PLANTED, ids=_name)
async def test_the_bug_is_caught(plant: Plant, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises((Broken, EverlogError)):
        await CASES[case](SqliteUnderTest(tmp_path))
