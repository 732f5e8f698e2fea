"""What must hold of the records of a log, checked one after the other: the pure half of `everlog verify`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from everlog.cli.terminal import counted
from everlog.codec import Chunk
from everlog.contracts.contract import Contract
from everlog.dedupe import Seen, Verdict
from everlog.errors import EventRefused
from everlog.key import HASH_NAME, partition_of
from everlog.log import TopicSpec
from everlog.position import Offset, TopicPartition
from everlog.record import StoredRecord

MOST_IDS: Final = 2_000_000
"""Ids are remembered as 64-bit hashes, about 70 bytes each in Python: at most some 150 MB."""
MOST_FINDINGS: Final = 1_000
"""Kept and printed; those beyond are counted."""
MOST_LINES: Final = 5
"""Of one finding; the rest of them are counted."""

_json: Final = msgspec.json.Decoder()


class Audit:
    """Findings about the records that it was shown, each partition's in order, within bounded memory.

    Args:
        contracts: Decode the events of these types; those of others are counted. ``None``: decode none.
        has_log_time: The log stamps the records itself, so that `logged_at` never goes back.
    """

    def __init__(self, contracts: Mapping[str, Contract[Any]] | None, *, has_log_time: bool) -> None:
        self.findings: list[str] = []
        self.more_findings = 0
        """Those beyond the first 1,000."""
        self.records = 0
        self.partitions = 0
        self.unknown: dict[str, int] = {}
        """Types without a contract → how many events."""
        self.ids_checked = True
        self.stores: list[str] = []
        """Whether ids could be compared: not where there are too many."""
        self._contracts = contracts
        self._has_log_time = has_log_time
        self._ids: set[int] = set()

    def found(self, line: str) -> None:
        """Note that something is wrong. Of a text of many lines, as SQLite's check of a file has it, the first few."""
        first, *rest = [part.strip() for part in line.splitlines() if part.strip()] or [line]
        shown, left = rest[: MOST_LINES - 1], max(len(rest) - MOST_LINES + 1, 0)
        line = "; ".join([first, *shown]) + (f"; and {left:,} more" if left else "")
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(line)
        else:
            self.more_findings += 1

    def check_id(self, source: str, id_: str) -> bool:
        """Tell whether the pair is new."""
        if not self.ids_checked:
            return True
        mark = hash((source, id_))
        if mark in self._ids:
            return False
        if len(self._ids) >= MOST_IDS:
            self.ids_checked = False
            self._ids.clear()
        else:
            self._ids.add(mark)
        return True

    def partition(self, spec: TopicSpec, where: TopicPartition, first: Offset) -> PartitionAudit:
        """Begin with a partition; `first` is the offset before its oldest record."""
        self.partitions += 1
        return PartitionAudit(self, spec, where, first)

    def fault(self, record: StoredRecord) -> str | None:
        """Say what is wrong with a record's data; ``None`` where nothing is."""
        try:
            _json.decode(record.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return f"its data is no JSON: {error}"
        if self._contracts is None:
            return None
        contract = self._contracts.get(record.type)
        if contract is None:
            self.unknown[record.type] = self.unknown.get(record.type, 0) + 1
            return None
        try:
            contract.decode(record.data)
        except EventRefused as error:
            return f"it breaks its contract: {error}"
        return None

    @property
    def has_log_time(self) -> bool:
        """The log stamps the records itself."""
        return self._has_log_time


class PartitionAudit:
    """The checks that need the order of one partition. Made by `Audit.partition`."""

    def __init__(self, audit: Audit, spec: TopicSpec, where: TopicPartition, first: Offset) -> None:
        self._audit = audit
        self._spec = spec
        self._where = where
        self._last = first
        self._logged_at_us = -1
        self._producers: dict[str, Seen] = {}

    def skip(self, through: Offset) -> None:
        """Go on behind an offset: retention deleted what comes before, while it was to be checked."""
        self._last = through

    def take(self, chunk: Chunk) -> None:
        """Check the next chunk of the partition."""
        is_dense = chunk.offsets is None
        for record in chunk.records():
            place = f"{self._where.topic}/{self._where.partition}@{record.offset}"
            if record.offset <= self._last:
                self._audit.found(f"{place}: comes behind offset {self._last}: offsets must ascend")
            elif (
                is_dense and record.offset != self._last + 1 and not self._spec.keep_newest
            ):  # where they are dense, they can be computed
                self._audit.found(f"{place}: missing before it: {counted(record.offset - self._last - 1, 'record')}")
            self._last = record.offset
            self._take(record, place)

    def _take(self, record: StoredRecord, place: str) -> None:
        audit = self._audit
        audit.records += 1
        if audit.has_log_time and record.logged_at_us < self._logged_at_us:
            audit.found(f"{place}: logged {(self._logged_at_us - record.logged_at_us) / 1e6:.6f} s before the record ahead of it")
        self._logged_at_us = record.logged_at_us
        if not audit.check_id(record.source, record.id):
            audit.found(f"{place}: id {record.id!r} of source {record.source!r} is there twice")
        self._check_key(record, place)
        self._check_number(record, place)
        fault = audit.fault(record)
        if fault is not None:
            audit.found(f"{place}: {fault}")

    def _check_key(self, record: StoredRecord, place: str) -> None:
        if self._spec.key is None or self._spec.hash != HASH_NAME:
            return
        if record.key is None:
            self._audit.found(f"{place}: it has no key, and the topic's key is {self._spec.key!r}")
        elif (expected := partition_of(record.key, self._spec.partitions)) != self._where.partition:
            self._audit.found(f"{place}: key {record.key!r} belongs to partition {expected}")

    def _check_number(self, record: StoredRecord, place: str) -> None:
        if not record.producer:
            return
        seen = self._producers.get(record.producer)
        if seen is None:
            # What retention deleted may have held its first numbers.
            seen = self._producers[record.producer] = Seen(record.sequence - 1)
        if seen.judge(record.sequence) is Verdict.NEW:
            seen.take(record.sequence, record.sequence + 1)
        else:
            self._audit.found(
                f"{place}: number {record.sequence} of producer {record.producer!r} is there twice, or far too late"
            )

    def check_end(self, head: Offset) -> None:
        """Check that the records reach the head."""
        if self._last < head:
            self._audit.found(
                f"{self._where.topic}/{self._where.partition}: the records end at offset {self._last}, and the head is {head}"
            )
