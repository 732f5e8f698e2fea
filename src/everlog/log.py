"""The port of a log: what happened, as topics of immutable events. The single source of truth.

An adapter is a class with these methods and a function `open_log(url, *, clock)` that its entry point names
(group `everlog.logs`, one per URL scheme). Beside that function there may be `examine_log(url, *, clock) -> Examined`, for `everlog doctor`: it
looks at a log that may be missing or damaged, opens nothing and changes nothing. `everlog.conformance.log` is the second half of this file.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol
from uuid import UUID

import msgspec

from everlog.codec import Batch
from everlog.errors import EverlogError
from everlog.key import HASH_NAME
from everlog.position import Offset, Position, TopicPartition
from everlog.record import NewRecord

if TYPE_CHECKING:
    from pathlib import Path

ONCE_S: Final = 7 * 24 * 3600
"""How long an idempotency key is remembered."""
DEDUPE_RANGE: Final = 8_192
"""How far below a producer's highest number a number that was never seen is still taken."""


class Features(msgspec.Struct, frozen=True):
    """What a log does beyond the minimum. Logs differ here and nowhere else."""

    durability: Literal["fsync", "replicated", "memory", "relaxed"]
    """What an acknowledgement means: synced to disk, on several machines, gone with the process, or less by request."""
    dedupes: bool
    """The log tests numbers itself; where ``False``, readers do."""
    conditional_append: bool
    """`append(expect=...)` and `read_stream` are honoured."""
    idempotency_keys: bool
    """`NewRecord.once` is honoured, and with it `publish(idempotency_key=...)`."""
    total_order: bool
    """Each chunk carries a commit number that orders it among all topics."""
    log_time: bool
    """`logged_at` is set by the log inside the commit and never goes back."""
    retention: bool
    """`trim`, `retain` and what a topic says of age, size and newest records are honoured."""
    shared: bool
    """Several processes can use it at once."""
    backup: bool
    """`backup` is honoured: all of it fits into one file."""
    max_record_bytes: int
    """Largest data of one record, in bytes."""


class TopicSpec(msgspec.Struct, frozen=True):
    """What a log stores of a topic beside its records.

    Attributes:
        name: Its name.
        key: The field that holds the key in every type of it; ``None`` for a topic without order.
        partitions: How many ordered parts it has. Changed only by moving to another topic.
        hash: How a key finds its partition.
        keep_s: How old the records of a partition get before retention may delete them, by `logged_at`; ``None``: any age.
        keep_bytes: How many bytes of chunks retention keeps of a partition at least; ``None``: all.
        keep_newest: The newest record of each key stays, whatever its age and size. What was deleted between is no loss to a reader:
            newer records have taken its place. For topics of few keys, since a chunk goes as a whole or not at all.
        streams: Each key is a stream that takes conditional appends.
        types: JSON Schema of each type, by its wire name, as canonical bytes.
    """

    name: str
    key: str | None
    partitions: int = 8
    hash: str = HASH_NAME
    keep_s: float | None = None
    keep_bytes: int | None = None
    keep_newest: bool = False
    streams: bool = False
    types: Mapping[str, bytes] = msgspec.field(default_factory=dict[str, bytes])


class ProducerBatch(msgspec.Struct, frozen=True):
    """Who appends, and the number of the first record in each partition of the topic.

    Numbers are consecutive per producer, topic and partition, from 0. A sender is gapless: it never sends n + 1 before it
    sent n at least once, and always the same bytes under one number.
    """

    name: str
    first: Mapping[int, int]
    named: bool = False
    """Remembered for ever: a relay, a bridge, `--producer`. Otherwise until idle for 7 days."""


class Status(enum.Enum):
    """What became of one record of an append."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    """It was stored before, under the same number."""
    UNKNOWN = "unknown"
    """Nobody can say; append it again with the same producer and number, and it is stored once."""
    REFUSED = "refused"
    """It was not stored and will not be, as it is."""


class Appended(msgspec.Struct, frozen=True):
    """One outcome per record of an append, in the order given."""

    statuses: Sequence[Status]
    offsets: Sequence[Offset | None]
    """Where it was stored; ``None`` unless `STORED`, or a `DUPLICATE` by its idempotency key."""
    errors: Sequence[EverlogError | None] = ()
    """Why it was refused or is unknown; empty where nothing was."""

    @property
    def settled(self) -> bool:
        """Every record is in the log, from this call or from one before."""
        stored = self.statuses.count(Status.STORED)  # nearly always all of them, and counting them costs least
        return stored == len(self.statuses) or stored + self.statuses.count(Status.DUPLICATE) == len(self.statuses)


class StreamEnd(enum.Enum):
    """What an append may expect of a stream beside an offset."""

    NONE = "none"
    """The stream has no event yet."""


Expect = Offset | StreamEnd
"""A condition of an append. A union, so that one on tags can join."""


class Backlog(msgspec.Struct, frozen=True):
    """What is waiting behind a position."""

    count: int
    """Records, over all partitions. Exact where offsets are dense, an upper bound elsewhere."""
    oldest_us: int | None
    """`logged_at` of the oldest of them, in microseconds since 1970 UTC; ``None`` where nothing waits."""


class Reader(Protocol):
    """One wait for everything that it was assigned. Not shared between tasks."""

    async def next(self, *, max_records: int = 4_096, max_bytes: int = 1 << 20) -> Batch:
        """Wait until there is something behind what was read before, and return it.

        Each partition's chunks come in order, without a gap or a double, also while others append. Several partitions take
        turns; chunks whose `logged_at` is earlier tend to come first. Returns at the first chunk with which either bound
        is reached: it may exceed it by less than one chunk. Cancelling it loses nothing.

        Raises:
            RecordsGone: Retention deleted what was to be read next of a partition, before it was read. Nothing of another partition is
                lost. It is raised again until that partition is revoked; assign it behind `first` to go on with what is kept. Not for a
                topic of `keep_newest`.
            FileDamaged: What is stored was changed. Reading does not go on behind it.
            Closed: The log was closed, perhaps while waiting.
        """
        ...

    def assign(self, after: Mapping[TopicPartition, Offset]) -> None:
        """Read these partitions as well, behind these offsets. One that is assigned already goes on from where it stands: revoke it first to move it."""
        ...

    def revoke(self, partitions: Sequence[TopicPartition]) -> None:
        """Read these no more. Takes effect at once: no later `next` returns anything of them."""
        ...

    def close(self) -> None:
        """Let go of what the reader holds. Idempotent."""
        ...


class Log(Protocol):
    """Topics of immutable events. Safe to use from all tasks of one event loop."""

    @property
    def identity(self) -> UUID:
        """Random, born with the log, never changed."""
        ...

    @property
    def features(self) -> Features:
        """What it does beyond the minimum."""
        ...

    async def ensure_topic(self, topic: TopicSpec) -> None:
        """Create the topic, or check that it stands as declared. Idempotent; types that are new are added.

        Raises:
            TopicMismatch: It exists with another key, number of partitions, hash, retention or streams.
            SchemaMismatch: It exists with another schema under one of the types.
            FeatureMissing: It asks for retention or streams, and `features` has none.
            ValueError: A limit of retention is not above 0.
        """
        ...

    async def set_retention(self, topic: str, *, keep_s: float | None, keep_bytes: int | None) -> None:
        """Store other limits with the topic, both of them. The next `retain` honours them; nothing is deleted here.

        A step of a `retain` that is under way checks the limits once more as it deletes.

        Raises:
            TopicMissing, LogReadOnly: Nothing was changed.
            FeatureMissing: `features.retention` is ``False``.
            ValueError: A limit is not above 0.
        """
        ...

    async def topics(self) -> Sequence[TopicSpec]:
        """Return every topic, by name."""
        ...

    def append(
        self,
        topic: str,
        records: Sequence[NewRecord],
        *,
        producer: ProducerBatch | None = None,
        expect: Expect | None = None,
    ) -> Coroutine[Any, Any, Appended]:
        """Store `records` in the order given: all of one partition's or none of them.

        What the result reports as stored survives a crash of what `features.durability` names. A number that was seen is a
        duplicate; one that is missing within `DEDUPE_RANGE` below the highest seen is taken; one below that is unknown.
        Numbering takes effect when the call is made and not when it is awaited: two calls append in the order of the calls.

        A record with an idempotency key (`NewRecord.once`) is appended alone. Where one of its topic and source was stored under that key within
        7 days, whoever sent it, the record is a `DUPLICATE` of that one, and `offsets` says where that is.

        Args:
            topic: An existing topic.
            records: At least one. Records of one key go to one partition.
            producer: Names the sender and the numbers. ``None`` gives up the protection against a second sending.
            expect: Append only if the key's stream ends there. ``None`` skips the check.

        Returns:
            One outcome per record, in the order given.

        Raises:
            TopicMissing, LogReadOnly, SequenceReused, StreamConflict: Nothing was stored.
            IdempotencyKeyReused: Other type, key or data were stored under the idempotency key. Nothing was stored.
            FeatureMissing: `expect` was given and `features.conditional_append` is ``False``. Nothing was stored.
            ValueError: No records, a partition that the topic does not have, or no number for one. Nothing was stored.
        """
        ...

    async def last_sequence(self, producer: str, topic: str) -> Mapping[int, int]:
        """Return the highest number seen of `producer` in each partition of `topic`; a partition without any is left out."""
        ...

    def reader(self, after: Mapping[TopicPartition, Offset]) -> Reader:
        """Return a reader of these partitions, each from behind the offset given.

        `BEGINNING` is before the first record that ever was: where retention has deleted that, start behind `first` instead.
        """
        ...

    async def first(self, topic: str) -> Position:
        """Return the position before the oldest record that is kept.

        Raises:
            TopicMissing: It does not exist.
        """
        ...

    async def head(self, topic: str) -> Position:
        """Return the position behind the newest record: reading from there brings only what comes later.

        Raises:
            TopicMissing: It does not exist.
        """
        ...

    async def position_at(self, topic: str, time: datetime) -> Position:
        """Return a position with every record of `logged_at` ≥ `time` behind it.

        Raises:
            TopicMissing: It does not exist.
            ValueError: `time` has no zone.
        """
        ...

    async def backlog(self, topic: str, after: Mapping[int, Offset]) -> Backlog:
        """Return what waits behind the offset of each partition named."""
        ...

    async def gone_through(self, topic: str) -> Mapping[int, int]:
        """Return `logged_at` of the newest record deleted of each partition, in microseconds since 1970 UTC; where none was, it is left out.

        Raises:
            TopicMissing: It does not exist.
        """
        ...

    async def trim(self, topic: str, before: Position) -> None:
        """Delete what lies at or before the position, where it is a whole chunk. What was trimmed is remembered as gone.

        Steps, readers and what is never deleted are as for `retain`.

        Raises:
            FeatureMissing: `features.retention` is ``False``.
            TopicMissing: It does not exist.
            PositionRefused: The position belongs to another log. Nothing was deleted.
            LogReadOnly: No room or no permission. What was deleted before stays deleted.
        """
        ...

    async def retain(self) -> int:
        """Delete what the limits of the topics no longer keep: whole chunks, the oldest of a partition first.

        It goes in bounded steps, each all or nothing, and between two of them others have their turn; cancelled, it stops between two.
        It waits for nobody: a reader that has not read what is deleted is told `RecordsGone`. Offsets, numbers of producers and the
        log's time go on as if nothing had been deleted.

        Returns:
            How many records it deleted.

        Raises:
            FeatureMissing: `features.retention` is ``False``.
            LogReadOnly: No room or no permission. What was deleted before stays deleted.
        """
        ...

    async def read_stream(self, topic: str, key: str, *, after: Offset | None) -> Batch:
        """Return the events of one key of a topic declared `streams=True`.

        Raises:
            FeatureMissing: `features.conditional_append` is ``False``.
        """
        ...

    async def verify(self) -> Sequence[str]:
        """Check what lies below the records: pages, tables, counts. Return what is wrong, a line each."""
        ...

    async def backup(self, target: Path, *, progress: Callable[[int, int], None] | None = None, check: bool = True) -> None:
        """Copy everything into one new file, as of one moment, while all others go on reading and writing.

        What was acknowledged before the call is in the copy. It is written under another name beside `target`, synced, and named last: a
        crash leaves nothing under that name, and so does an error.

        Args:
            target: Where; its folder is made if it is missing.
            progress: Told now and then how many bytes are copied, and of how many. Back to none where the copy had to begin anew.
            check: Read the copy again before it is named.

        Raises:
            FilePlace: `target` exists, or cannot be written.
            FileDamaged: What is stored, or the copy of it, is damaged.
            FeatureMissing: `features.backup` is ``False``.
        """
        ...

    async def aclose(self) -> None:
        """Finish what was accepted, let go of everything. Idempotent; readers that wait are told `Closed`."""
        ...
