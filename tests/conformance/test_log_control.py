"""Positive control of the log's suite: for each seeded bug, a case that catches it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.adapters import MemoryUnderTest

from everlog.admission import Numbering, Part, Ruling, rule
from everlog.clock import Steady
from everlog.codec import Batch
from everlog.conformance import cases as frame
from everlog.conformance.log import cases
from everlog.dedupe import Seen
from everlog.log import Appended, ProducerBatch, Status, TopicSpec
from everlog.logs import memory
from everlog.logs.memory import MemoryLog, MemoryReader
from everlog.position import BEGINNING, Offset, Position, TopicPartition
from everlog.record import NewRecord

Patch = pytest.MonkeyPatch


def dedupe_drops_what_is_not_above_the_last(patch: Patch) -> None:
    def new_runs(self: Seen, start: int, count: int) -> list[tuple[int, int]]:
        start, stop = max(start, self.highest + 1), start + count
        return [(start, stop)] if start < stop else []

    patch.setattr(Seen, "new_runs", new_runs)


def dedupe_is_over_all_topics(patch: Patch) -> None:
    remember = MemoryLog._remember
    anywhere = Numbering()

    class OneForAll(dict[TopicPartition, Numbering]):
        def get(self, where: TopicPartition, default: Any = None) -> Any:
            return anywhere

        def setdefault(self, where: TopicPartition, default: Any = None) -> Any:
            return anywhere

    def for_all(self: MemoryLog, producer: ProducerBatch) -> OneForAll:
        return OneForAll(remember(self, producer))

    patch.setattr(MemoryLog, "_remember", for_all)


def dedupe_takes_what_lies_below_the_range(patch: Patch) -> None:
    new_runs = Seen.new_runs

    def all_new(self: Seen, start: int, count: int) -> list[tuple[int, int]]:
        return new_runs(self, start, count) or [(start, start + count)]

    patch.setattr(Seen, "new_runs", all_new)


def other_content_passes_for_a_duplicate(patch: Patch) -> None:
    def same_for_all(records: Sequence[NewRecord]) -> bytes:
        return b""

    patch.setattr("everlog.admission.content_of", same_for_all)


def a_reader_skips_a_record_after_an_assignment(patch: Patch) -> None:
    assign = MemoryReader.assign

    def skipping(self: MemoryReader, after: Mapping[TopicPartition, Offset]) -> None:
        assign(self, {where: Offset(offset + 1) for where, offset in after.items()})

    patch.setattr(MemoryReader, "assign", skipping)


def a_reader_forgets_to_wake(patch: Patch) -> None:
    def silent(self: MemoryReader, where: TopicPartition) -> None:
        pass

    patch.setattr(MemoryReader, "wake", silent)


def a_cancelled_reader_loses_what_it_took(patch: Patch) -> None:
    following = MemoryReader.next

    async def losing(self: MemoryReader, **bounds: int) -> Batch:
        batch = await following(self, **bounds)
        await asyncio.sleep(0)
        return batch

    patch.setattr(MemoryReader, "next", losing)


def a_revoked_partition_still_comes(patch: Patch) -> None:
    def deaf(self: MemoryReader, partitions: Sequence[TopicPartition]) -> None:
        pass

    patch.setattr(MemoryReader, "revoke", deaf)


def a_reader_gives_a_chunk_twice(patch: Patch) -> None:
    taken = MemoryReader._taken

    def repeating(self: MemoryReader, max_records: int, max_bytes: int) -> Batch:
        batch = taken(self, max_records, max_bytes)
        for chunk in batch.chunks[-1:]:
            if chunk.last % 5 == 0:
                self._after[chunk.where] = Offset(chunk.last - 1)
        return batch

    patch.setattr(MemoryReader, "_taken", repeating)


def an_append_stores_a_part_of_a_partition(patch: Patch) -> None:
    def splitting(part: Part, numbering: Numbering | None, **rest: Any) -> Ruling:
        ruling = rule(part, numbering, **rest)
        if ruling.status is not Status.REFUSED:
            return ruling
        fits = [at for at, record in enumerate(part.records) if len(record.data) <= rest["max_record_bytes"]]
        return Ruling(fits, ruling.status, ruling.error, ruling.content)

    patch.setattr(memory, "rule", splitting)


def an_append_takes_effect_when_it_is_awaited(patch: Patch) -> None:
    append = MemoryLog.append

    async def late(self: MemoryLog, *arguments: Any, **options: Any) -> Appended:
        return await append(self, *arguments, **options)

    patch.setattr(MemoryLog, "append", late)


def the_time_of_the_log_follows_the_clock_back(patch: Patch) -> None:
    store = MemoryLog._store

    def backwards(self: MemoryLog, *arguments: Any) -> Sequence[Offset]:
        self._last_us = self._clock.wall_us()
        return store(self, *arguments)

    patch.setattr(MemoryLog, "_store", backwards)


def a_declaration_replaces_the_topic(patch: Patch) -> None:
    def replaced(stored: TopicSpec, declared: TopicSpec) -> TopicSpec:
        return declared

    patch.setattr(memory, "merged", replaced)


def trimming_takes_a_chunk_too_much(patch: Patch) -> None:
    trim = MemoryLog.trim

    async def beyond(self: MemoryLog, topic: str, before: Position) -> None:
        await trim(self, topic, Position(before.log, {where: Offset(offset + 5) for where, offset in before.offsets.items()}))

    patch.setattr(MemoryLog, "trim", beyond)


def retention_takes_the_newest_record_of_a_key(patch: Patch) -> None:
    drop = memory._Partition.drop

    def all_of_them(self: memory._Partition, count: int) -> int:
        self.newest.clear()
        return drop(self, count)

    patch.setattr(memory._Partition, "drop", all_of_them)


def retention_by_size_takes_a_chunk_too_much(patch: Patch) -> None:
    excess = memory._excess

    def one_more(spec: TopicSpec, partition: memory._Partition, now_us: int) -> int:
        count = excess(spec, partition, now_us)
        return count and count + 1

    patch.setattr(memory, "_excess", one_more)


def retention_goes_by_a_clock_that_jumps(patch: Patch) -> None:
    def jumping(self: Steady) -> int:
        return self._clock.wall_us()

    patch.setattr(Steady, "wall_us", jumping)


def limits_that_are_set_are_not_looked_at(patch: Patch) -> None:
    async def nothing(self: MemoryLog, topic: str, **limits: float | None) -> None:
        pass

    patch.setattr(MemoryLog, "set_retention", nothing)


def a_reader_passes_over_what_was_deleted(patch: Patch) -> None:
    patch.setattr(memory._Partition, "lost_through", BEGINNING)


def what_is_gone_is_forgotten(patch: Patch) -> None:
    drop = memory._Partition.drop

    def forgetting(self: memory._Partition, count: int) -> int:
        gone = drop(self, count)
        self.gone_through_us = None
        return gone

    patch.setattr(memory._Partition, "drop", forgetting)


def offsets_begin_again_when_all_is_deleted(patch: Patch) -> None:
    drop = memory._Partition.drop

    def anew(self: memory._Partition, count: int) -> int:
        gone = drop(self, count)
        self.next = self.next if self.chunks else 0
        return gone

    patch.setattr(memory._Partition, "drop", anew)


CAUGHT_BY: Mapping[Callable[[Patch], None], str] = {
    dedupe_drops_what_is_not_above_the_last: "a_number_that_is_missing_in_the_range_is_taken_however_late",
    dedupe_is_over_all_topics: "numbers_of_two_topics_are_apart",
    dedupe_takes_what_lies_below_the_range: "a_number_below_the_range_is_unknown_and_never_stored",
    other_content_passes_for_a_duplicate: "other_content_under_the_numbers_of_the_newest_batch_is_an_error",
    a_reader_skips_a_record_after_an_assignment: "a_reader_begins_behind_the_offset_that_it_was_given",
    a_reader_forgets_to_wake: "a_waiting_reader_is_woken_by_an_append",
    a_cancelled_reader_loses_what_it_took: "a_cancelled_wait_loses_nothing",
    a_revoked_partition_still_comes: "nothing_comes_of_a_partition_after_it_was_revoked",
    a_reader_gives_a_chunk_twice: "reading_has_neither_gap_nor_double_while_others_append",
    an_append_stores_a_part_of_a_partition: "a_partition_with_a_refused_record_stores_none_and_the_others_store_all",
    an_append_takes_effect_when_it_is_awaited: "appends_are_stored_in_the_order_of_the_calls",
    the_time_of_the_log_follows_the_clock_back: "the_time_of_the_log_never_goes_back_though_the_clock_does",
    a_declaration_replaces_the_topic: "another_setting_is_refused_by_its_name_and_changes_nothing",
    trimming_takes_a_chunk_too_much: "what_is_trimmed_is_gone_and_the_rest_stays",
    retention_takes_the_newest_record_of_a_key: "the_newest_record_of_each_key_stays",
    retention_by_size_takes_a_chunk_too_much: "a_partition_keeps_at_least_the_bytes_of_its_topic_and_no_chunk_more",
    retention_goes_by_a_clock_that_jumps: "a_clock_that_jumps_deletes_nothing",
    limits_that_are_set_are_not_looked_at: "limits_that_are_set_are_honoured_by_the_next_retain",
    a_reader_passes_over_what_was_deleted: "a_reader_is_told_what_was_deleted_before_it_was_read",
    what_is_gone_is_forgotten: "the_time_through_which_a_partition_is_gone_is_that_of_its_newest_deleted_record",
    offsets_begin_again_when_all_is_deleted: "offsets_and_numbers_go_on_after_everything_was_deleted",
}


@pytest.mark.parametrize("bug", CAUGHT_BY, ids=lambda bug: bug.__name__)
async def test_a_seeded_bug_is_caught(bug: Callable[[Patch], None], tmp_path: Path, monkeypatch: Patch) -> None:
    (case,) = [case for case in cases() if case.name == CAUGHT_BY[bug]]
    await case(MemoryUnderTest(tmp_path))  # without the bug it passes: what fails below is caused by it
    bug(monkeypatch)
    monkeypatch.setattr(frame, "PATIENCE_S", 0.1)
    with pytest.raises(frame.Broken) as caught:
        await case(MemoryUnderTest(tmp_path))
    assert case.name.replace("_", " ") in "".join(caught.value.__notes__)
