"""The checks of `everlog verify`, each with the fault that it must find."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from everlog import Event, Topic
from everlog.cli import audit as audit_module
from everlog.cli.audit import Audit
from everlog.codec import Chunk, ProducerRun, encode_chunk
from everlog.contracts.contract import Contract
from everlog.key import partition_of
from everlog.position import BEGINNING, Offset, TopicPartition
from everlog.record import NewRecord

topic = Topic("shop.orders", key="customer", partitions=4)


@topic.event("shop.order_placed/1")
class OrderPlaced(Event):
    customer: str


KEY = "ada"
WHERE = TopicPartition(topic.name, partition_of(KEY, 4))
GOOD = NewRecord("shop.order_placed/1", b'{"customer": "ada"}', KEY, WHERE.partition, "cli", 0)


def chunk(*records: NewRecord, first: int = 0, numbers: Sequence[int] | None = None, logged_at_us: int = 5) -> Chunk:
    runs = [ProducerRun("p", number, 1) for number in numbers] if numbers else [ProducerRun("", -1, len(records))]
    return Chunk.from_bytes(encode_chunk(records, runs, logged_at_us), WHERE, Offset(first), after=BEGINNING)


def audited(*chunks: Chunk, contracts: dict[str, Contract[Any]] | None = None) -> Audit:
    audit = Audit(contracts, has_log_time=True)
    partition = audit.partition(topic.spec(), WHERE, BEGINNING)
    for one in chunks:
        partition.take(one)
    return audit


def test_what_a_log_writes_is_fine() -> None:
    audit = audited(
        chunk(GOOD, GOOD, numbers=[0, 1]), chunk(GOOD, numbers=[2], first=2, logged_at_us=6), contracts=dict(topic.contracts)
    )
    assert audit.findings == []
    assert audit.records == 3


def test_a_late_number_that_was_missing_is_fine() -> None:
    assert audited(chunk(GOOD, GOOD, GOOD, numbers=[0, 2, 1])).findings == []


@pytest.mark.parametrize(
    ("chunks", "finding"),
    [
        ([chunk(GOOD), chunk(GOOD, first=3)], "@3: missing before it: 2 records"),
        ([chunk(GOOD, first=2)], "@2: missing before it: 2 records"),
        (
            [chunk(GOOD, GOOD), chunk(msgspec.structs.replace(GOOD, id="x"), first=1)],
            "@1: comes behind offset 1: offsets must ascend",
        ),
        ([chunk(GOOD), chunk(GOOD, first=1, logged_at_us=4)], "@1: logged 0.000001 s before the record ahead of it"),
        ([chunk(*[msgspec.structs.replace(GOOD, id="x")] * 2)], "@1: id 'x' of source 'cli' is there twice"),
        ([chunk(msgspec.structs.replace(GOOD, key="cy"))], f"@0: key 'cy' belongs to partition {partition_of('cy', 4)}"),
        ([chunk(msgspec.structs.replace(GOOD, key=None))], "@0: it has no key, and the topic's key is 'customer'"),
        (
            [chunk(GOOD, msgspec.structs.replace(GOOD, id="x"), numbers=[4, 4])],
            "@1: number 4 of producer 'p' is there twice, or far too late",
        ),
        ([chunk(msgspec.structs.replace(GOOD, data=b'{"a": nan}'))], "@0: its data is no JSON: "),
        ([chunk(msgspec.structs.replace(GOOD, data=b'{"customer": 1}'))], "@0: it breaks its contract: "),
    ],
)
def test_a_fault_is_found(chunks: list[Chunk], finding: str) -> None:
    (found,) = audited(*chunks, contracts=dict(topic.contracts)).findings
    assert f"shop.orders/{WHERE.partition}{finding}" in found


def test_events_of_other_types_are_counted() -> None:
    audit = audited(chunk(msgspec.structs.replace(GOOD, type="x/1"), GOOD), contracts=dict(topic.contracts))
    assert (audit.findings, audit.unknown) == ([], {"x/1": 1})


def test_records_that_do_not_reach_the_head_are_found() -> None:
    audit = Audit(None, has_log_time=True)
    partition = audit.partition(topic.spec(), WHERE, BEGINNING)
    partition.take(chunk(GOOD))
    partition.check_end(Offset(0))
    assert audit.findings == []
    partition.check_end(Offset(4))
    assert audit.findings == [f"shop.orders/{WHERE.partition}: the records end at offset 0, and the head is 4"]


def test_too_many_ids_are_not_checked_rather_than_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "MOST_IDS", 2)
    audit = audited(chunk(GOOD, GOOD, GOOD, msgspec.structs.replace(GOOD, id="x"), msgspec.structs.replace(GOOD, id="x")))
    assert audit.findings == []
    assert not audit.ids_checked


def test_findings_are_bounded_and_counted() -> None:
    audit = Audit(None, has_log_time=True)
    for number in range(1_010):
        audit.found(str(number))
    assert (len(audit.findings), audit.more_findings) == (1_000, 10)


def test_of_a_finding_of_many_lines_the_first_few_are_shown() -> None:
    audit = Audit(None, has_log_time=True)
    audit.found("one\ntwo\n\n" + "\n".join(f"line {number}" for number in range(3, 81)))
    audit.found("alone")
    audit.found("one\ntwo\nthree\nfour\nfive")
    assert audit.findings == ["one; two; line 3; line 4; line 5; and 75 more", "alone", "one; two; three; four; five"]
