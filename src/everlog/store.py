"""The port of a store: what one app has done with the log. Progress and effects commit together here, and nowhere else.

An adapter is a class with these methods and a function `open_store(url, *, clock)` that its entry point names
(group `everlog.stores`, one per URL scheme). Beside that function there may be `examine_store(url, *, app, clock, lease_s) -> Examined`, for
`everlog doctor`: see `everlog.log`. `everlog.conformance.store` is the second half of this file.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol
from uuid import UUID

import msgspec

from everlog.position import Offset, TopicPartition
from everlog.record import NewRecord, StoredRecord

if TYPE_CHECKING:
    from pathlib import Path


class StoreFeatures(msgspec.Struct, frozen=True):
    """What a store does beyond the minimum. Stores differ here and nowhere else."""

    durability: Literal["fsync", "replicated", "memory", "relaxed"]
    """What a commit survives."""
    sql: bool
    """`tx.sql` is honoured."""
    within: bool
    """`publish(within=...)` and `App.stage` put events into the user's own transaction."""
    shared: bool
    """Several processes can use it at once."""
    backup: bool
    """`backup` is honoured: all of it fits into one file."""


class SubscriptionSpec(msgspec.Struct, frozen=True):
    """What a store remembers of a subscription.

    Attributes:
        name: Its stored name.
        types: The wire names that it handles, by topic.
        states: The stored names of the states that it owns.
        renamed_from: The name that it may be stored under still.
    """

    name: str
    types: Mapping[str, Sequence[str]]
    states: Sequence[str]
    renamed_from: str | None = None


def passed_by(types: Mapping[str, Sequence[str]], stored: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the types that a subscription handles and did not when it was last stored, by topic: it has passed events of theirs by.

    Those of another version of a type that it handled are not passed by, but held until the code knows them.
    """
    more: dict[str, list[str]] = {}
    for topic, names in types.items():
        held = {name.rpartition("/")[0] for name in stored.get(topic, ())}
        more[topic] = [name for name in names if name.rpartition("/")[0] not in held]
    return {topic: names for topic, names in more.items() if names}


class AppSpec(msgspec.Struct, frozen=True):
    """What a store remembers of its app: the name that it has all its stored names under."""

    name: str
    subscriptions: Sequence[SubscriptionSpec]


class Slot(NamedTuple):
    """What a lease covers: partition `number` of every topic of a subscription."""

    subscription: str
    number: int


RELAY: Final = Slot("", 0)
"""The slot of the one process that sends the outbox."""
_RELAY_NAME: Final = re.compile(r"relay-([0-9a-f]{32})-(\d+)")


class Lease(msgspec.Struct, frozen=True):
    """The right to commit for a slot, until another process raises the epoch."""

    slot: Slot
    epoch: int
    member: int
    is_unclean: bool = False
    """The former owner did not give the slot back: perhaps a handler killed its process."""


class Survey(NamedTuple):
    """Who works on a subscription now."""

    members: Sequence[int]
    """The live members that may work on it, ascending: those that handle the most types, where old and new code run side by side."""
    owners: Mapping[int, int | None]
    """Each slot number that ever had an owner → its live owner, or ``None`` where it is free to take."""


StateKey = tuple[str, str]
"""The stored name of a state, and a key as canonical JSON array text."""


class Versioned(NamedTuple):
    """A row of state as committed. An absent row has `value` ``None`` and version 0."""

    value: bytes | None
    version: int


class Put(msgspec.Struct, frozen=True, tag=True):
    """Set the row to `value`, JSON."""

    value: bytes


class Add(msgspec.Struct, frozen=True, tag=True):
    """Add to the number in the row; an absent row counts as 0. A blind change: it never conflicts."""

    amount: int | float | Decimal


class Delete(msgspec.Struct, frozen=True, tag=True):
    """Remove the row."""


Write = Put | Add | Delete


class ScanRead(NamedTuple):
    """A scan that a unit did, and what it saw: the rows' keys and versions, before the unit's own writes."""

    state: str
    prefix: str
    """Canonical JSON array text of the prefix's elements; `[]` for all."""
    rows: tuple[tuple[str, int], ...]


class Emitted(msgspec.Struct, frozen=True):
    """An event on its way into the outbox."""

    topic: str
    record: NewRecord


class Cause(enum.Enum):
    """Why a record is held."""

    FAILED = "failed"
    """Its handler failed."""
    BEHIND = "behind"
    """An earlier event of its key is held."""
    UNREADABLE = "unreadable"
    """Its version is unknown to the code, or its bytes break the contract."""
    KILLED = "killed"
    """The process died, or had to be ended, while nothing but its handler ran."""


class Hold(msgspec.Struct, frozen=True):
    """A copy of a record, to be held until its key's turn comes.

    Attributes:
        key: The lane: the key, or the record's own place where it has none.
        record: The record as the log gave it.
        cause: Why it is held.
        attempts: How often its handler has failed.
        error: The last error in one line; empty for `BEHIND`.
        trace: The traceback of it, cut to 8 KiB.
        next_attempt_us: Wall time of the next attempt; ``None`` is parked.
    """

    key: str
    record: StoredRecord
    cause: Cause
    attempts: int
    error: str
    trace: str
    next_attempt_us: int | None


class Skip(msgspec.Struct, frozen=True):
    """A copy of a record that failed and is passed over, for the list of what was skipped."""

    key: str
    record: StoredRecord
    error: str


class Room(NamedTuple):
    """How much a subscription may hold, over all its slots."""

    records: int
    size_bytes: int


class Retried(msgspec.Struct, frozen=True):
    """A held record was tried again and failed again."""

    held_id: int
    cause: Cause
    attempts: int
    error: str
    trace: str
    next_attempt_us: int | None


class Timer(msgspec.Struct, frozen=True):
    """An event to be published at a time. Stored from the start, used later."""

    name: str
    key: str
    fires_us: int
    emitted: Emitted | None


class Unit(msgspec.Struct):
    """What one handler call changes, or what was decided about one record.

    Attributes:
        slot: Whose lease it stands under.
        lane: The key whose units stay in order; ``None`` for a record without key and for a unit that is never dropped.
        version: The number that rows written by it get: unique in the store (`Joined.version_base` + a counter).
        finishes: The records that are done with it.
        reads: Rows read from the store or from earlier units of the process, with the version seen.
        scans: Scans done.
        writes: The last write to each row.
        emits: Events for the outbox, in order.
        holds: Copies to hold, in order, behind what their keys hold already.
        retried: A held record that failed again.
        releases: Held records that are done with. Where one is not held any more, the unit is in conflict.
        skips: What is passed over, for the list.
        room: How much the subscription may hold in all; ``None`` for a unit without `holds`.
        timers: Timers set or, with `emitted` ``None``, removed.
        size: About how many bytes it writes.
    """

    slot: Slot
    lane: str | None
    version: int
    finishes: Sequence[tuple[TopicPartition, Offset]] = ()
    reads: dict[StateKey, int] = {}
    scans: list[ScanRead] = []
    writes: dict[StateKey, Write] = {}
    emits: list[Emitted] = []
    holds: Sequence[Hold] = ()
    retried: Retried | None = None
    releases: Sequence[int] = ()
    skips: Sequence[Skip] = ()
    room: Room | None = None
    timers: list[Timer] = []
    size: int = 0


class Progress(msgspec.Struct, frozen=True):
    """How far one partition is handled, once all units of its commit are applied.

    Everything up to `through` is finished but for `unfinished`. For a unit that is not applied, the store itself adds
    what the unit would have finished back to `unfinished`.
    """

    where: TopicPartition
    through: Offset
    unfinished: Sequence[Offset] = ()
    dedupe: bytes = b""
    """The numbers seen, where the log does not test them itself (`Features.dedupes`)."""


class Outcome(enum.Enum):
    """What became of a unit."""

    COMMITTED = "committed"
    CONFLICT = "conflict"
    """A row that it read has changed since: run it again."""
    DROPPED = "dropped"
    """An earlier unit of its lane was not applied: run it again, behind that."""
    FENCED = "fenced"
    """Another process owns the slot: forget it."""
    REFUSED = "refused"
    """It adds to a row that holds no number: the handler failed."""
    FULL = "full"
    """The subscription holds as much as it may: keep the record unfinished."""


class HeldKey(msgspec.Struct, frozen=True):
    """A key with held records."""

    key: str
    records: int
    next_attempt_us: int | None
    """When its first record is due; ``None`` is parked."""
    is_unreadable: bool = False
    """It is parked because the code could not read its first record; code that can may go on with it."""


class Held(msgspec.Struct, frozen=True):
    """A held record, with its place in its key's queue: ascending `id`."""

    id: int
    subscription: str
    slot: int
    key: str
    record: StoredRecord
    cause: Cause
    attempts: int
    error: str
    trace: str
    next_attempt_us: int | None
    held_at_us: int


class ParkedKey(msgspec.Struct, frozen=True):
    """A key whose first held record has no next attempt, or is being retried, for the command line."""

    subscription: str
    key: str
    records: int
    first: Held
    """The first record of its queue: the one that failed."""


class Skipped(msgspec.Struct, frozen=True):
    """A record that was passed over."""

    id: int
    subscription: str
    key: str
    record: StoredRecord
    error: str
    skipped_at_us: int


class Attempt(msgspec.Struct, frozen=True):
    """What handlers are about to be called for. Stored before and removed after, so that it stays where the process died meanwhile."""

    records: Sequence[tuple[TopicPartition, Offset]] = ()
    """Records of the log, in the order in which they are taken."""
    held: tuple[str, int, int] | None = None
    """A held record instead: its key, its id, and its attempts so far."""


class Fresh(msgspec.Struct, frozen=True):
    """Records of types that a subscription had passed by, and that it handles for the first time: those above an offset, and some below."""

    types: Sequence[str]
    above: Offset
    below: Sequence[Offset] = ()

    def has(self, offset: Offset, type_: str) -> bool:
        """Tell whether a record is one of them."""
        return type_ in self.types and (offset > self.above or offset in self.below)


class Muted(msgspec.Struct, frozen=True):
    """Records that are handled again and whose handlers' events were published before: those up to `through`, without `but` and `fresh`."""

    where: TopicPartition
    through: Offset
    but: Sequence[Offset] = ()
    """Offsets, ascending."""
    fresh: Sequence[Fresh] = ()

    def has(self, offset: Offset, type_: str) -> bool:
        """Tell whether what a handler publishes for this record was published before."""
        return offset <= self.through and offset not in self.but and not any(fresh.has(offset, type_) for fresh in self.fresh)


class SlotState(msgspec.Struct, frozen=True):
    """Where a slot stands."""

    progress: Sequence[Progress]
    held: Sequence[HeldKey]
    attempt: Attempt | None = None
    """What was attempted when the slot was last worked on, and did not end."""
    generation: int = 1
    """Of the subscription."""
    muted: Sequence[Muted] = ()
    """What a replay does not publish again."""


class Again(msgspec.Struct, frozen=True):
    """What a subscription is to handle again.

    Attributes:
        subscription: Its name.
        after: Behind which offset each topic partition begins; others go on where they stand.
        rebuilds: A replay: state begins empty, and what was published for these records is not published again. Without it a rewind: the same
            events once more, over the state of today, and all that their handlers publish.
        keep_state: A replay begins with the state of today.
        grown: Types, by topic, that the subscription did not handle before, and that it handles from there on: of a replay alone. What is published
            for their records is published for the first time.
    """

    subscription: str
    after: Mapping[TopicPartition, Offset]
    rebuilds: bool
    keep_state: bool = False
    grown: Mapping[str, Sequence[str]] = {}


class SubscriptionStatus(msgspec.Struct, frozen=True):
    """Where a whole subscription stands, over all its slots."""

    name: str
    generation: int
    progress: Sequence[Progress]
    blocked_keys: int
    parked_keys: int
    held_records: int
    paused: Sequence[str] = ()
    """Why live members have paused it: what its handlers need does not answer."""
    held_bytes: int = 0
    origin: str = ""
    """The name that it was first stored under: ids of what its handlers publish come from it, whatever it is called since."""
    types: Mapping[str, Sequence[str]] = {}
    """What it handles, by topic."""


class StoreStatus(msgspec.Struct, frozen=True):
    """Where the app stands."""

    app: str
    log: UUID | None
    subscriptions: Sequence[SubscriptionStatus]
    outbox: int
    """Events that are committed and not yet in the log."""
    outbox_parked: int
    """Of these, those that the log refused for good, and those behind them."""


class Registered(NamedTuple):
    """What a store held before the app registered."""

    log: UUID | None
    """The identity of the log that the progress belongs to; ``None`` before the first start."""
    new: frozenset[str]
    """Subscriptions that it did not hold."""
    grown: Mapping[str, Sequence[str]]
    """Subscription → types that it did not hold before, on topics with progress, and whose events were passed by: not a new version of
    a type that it held, since what the code does not know of these is kept."""


class Joined(NamedTuple):
    """What a process is to the store."""

    member: int
    version_base: int
    """Versions of its units are this + 1, + 2, … (2⁴⁰ of them), and no other process ever uses them."""


class OutboxRow(msgspec.Struct, frozen=True):
    """An event in the outbox."""

    id: int
    emitted: Emitted
    sequence: int | None
    """Its number among the relay's records of its topic and partition; ``None`` until the relay assigned it."""
    error: str | None
    """Why the log refused it for good; ``None`` otherwise."""


class Landmark(NamedTuple):
    """A record that the log held while the app worked on it. A log that was put back from a backup holds another one there, or none."""

    where: TopicPartition
    offset: Offset
    logged_at_us: int
    """When the log stored it, in microseconds since 1970 UTC."""


class Incarnation(msgspec.Struct, frozen=True):
    """A new beginning of a store's outbox, for a store or a log that was put back from a backup.

    Attributes:
        number: Above that of the last one.
        sent: Topic and id of all events that the log holds already and that may be published again. A row of the outbox with one of these ids is
            not sent. What former incarnations remembered of the kind is forgotten.
        progress: Progress to set back, by subscription: what lies beyond the end of the log.
        landmarks: What the log holds now.
    """

    number: int
    sent: Sequence[tuple[str, str]] = ()
    progress: Sequence[tuple[str, Progress]] = ()
    landmarks: Sequence[Landmark] = ()


class Request(NamedTuple):
    """What a command line asks the owner of a slot to do with a key's held records."""

    id: int
    slot: Slot
    key: str
    action: Literal["redrive", "skip"]


class Store(Protocol):
    """What one app has done. Safe to use from all tasks of one event loop."""

    @property
    def identity(self) -> UUID:
        """Random, born with the store."""
        ...

    @property
    def incarnation(self) -> int:
        """Raised by a restore, so that the relay's numbers start anew."""
        ...

    @property
    def features(self) -> StoreFeatures:
        """What it does beyond the minimum."""
        ...

    async def register(self, app: AppSpec, *, log: UUID, accept: Container[str] = ()) -> Registered:
        """Remember the app's stored names, and the log on the first start. Idempotent.

        A subscription that is stored under its former name gets the new one, with all that it has.

        Args:
            app: All subscriptions of the app.
            log: The identity of the log; kept if none is stored yet, otherwise only reported.
            accept: Types by which a subscription may grow, and that are remembered. Others are reported and not remembered.

        Raises:
            SubscriptionMissing: A stored subscription is not in `app`. Nothing was changed.
            StartRefused: The store belongs to an app with another name, or a live member works on a subscription that was renamed. Nothing
                was changed.
        """
        ...

    async def retire(self, subscription: str) -> None:
        """Forget a subscription: progress, state, held records, leases.

        Raises:
            CommandRefused: It is not stored, or a live member works on it.
        """
        ...

    async def begin(self, subscription: str, progress: Sequence[Progress]) -> None:
        """Set the progress of partitions that have none; what is set already stays."""
        ...

    async def join(self, subscriptions: Mapping[str, Sequence[str]], *, alive_s: float) -> Joined:
        """Become a member that handles these subscriptions, of each these types.

        The store keeps the member alive by itself, from a place that a busy event loop does not stop, until `leave`,
        or until `turned` has not been called for `alive_s`.
        """
        ...

    def turned(self) -> None:
        """Note that the event loop turns. Cheap; called about once a second."""
        ...

    async def leave(self) -> None:
        """Give back every lease and end the membership. Idempotent."""
        ...

    async def pause(self, subscription: str, reason: str | None) -> None:
        """Say in the status that this member pauses a subscription, until it leaves or dies; ``None``: that it goes on."""
        ...

    async def survey(self, subscription: str) -> Survey:
        """Return who works on the subscription now.

        A member does not count while a live one handles types that it lacks: it would park what the other can handle. Of several that
        each lack something, those with the types of the newest one count.
        """
        ...

    async def acquire(self, slot: Slot) -> Lease | None:
        """Take the slot if it is free: never owned, released, or its owner dead or silent for longer than the lease.

        Raises the epoch, so that whatever the former owner still sends is refused. Returns ``None`` where a live member
        owns it; the caller's own lease again where it is the owner. `is_unclean` is set where an owner neither released it nor left.
        """
        ...

    async def release(self, lease: Lease) -> None:
        """Give the slot back and ring the bell, so that another member takes it at once. A lost lease is passed over."""
        ...

    async def load(self, lease: Lease) -> SlotState:
        """Return where the slot stands. What another process committed before `acquire` returned is in it, nothing comes later.

        Raises:
            LeaseLost: Another process owns it.
        """
        ...

    async def attempt(self, lease: Lease, attempt: Attempt | None) -> None:
        """Store what handlers are about to be called for, instead of what was stored; ``None``: they have ended, whatever their outcome.

        Raises:
            LeaseLost: Another process owns the slot. Nothing was changed.
        """
        ...

    def accuse(self, lease: Lease, attempt: Attempt, *, within_s: float) -> bool:
        """Store an attempt from any thread, while the event loop is blocked: the last act of a process that has to end.

        Blocks for at most `within_s` seconds; tells whether it is stored.
        """
        ...

    async def read(self, keys: Sequence[StateKey]) -> Sequence[Versioned]:
        """Return the committed rows, in the order of `keys`."""
        ...

    async def scan(self, state: str, prefix: str) -> Sequence[tuple[str, Versioned]]:
        """Return the committed rows whose key starts with the whole elements of `prefix`, by key text, as of one moment."""
        ...

    async def commit(
        self, units: Sequence[Unit], leases: Sequence[Lease], progress: Sequence[tuple[Slot, Progress]]
    ) -> Sequence[Outcome]:
        """Apply the units in the order given, and the progress, in one transaction.

        A unit is applied whole or not at all. It is not applied when a lease of its slot is missing in `leases` or of an old epoch
        (`FENCED`), when a row or scan that it read has another version now (`CONFLICT`), when an earlier unit of its slot and lane in
        this call was not applied (`DROPPED`), when it adds to what is no number (`REFUSED`), when its subscription would hold more than
        the unit's `room` (`FULL`). Progress of a fenced slot is not written.
        Units see what earlier units of the same call wrote. Rows in the outbox become visible in the order of commits and units.

        Returns:
            One outcome per unit.

        Raises:
            StoreReadOnly: Nothing was stored.
            StoreError: The outcome is unknown: the leases have to be taken anew, and what is stored decides.
        """
        ...

    async def section(self) -> Section:
        """Begin a transaction of statements: nothing else is committed to the store until it ends. Waits for what was queued before.

        Raises:
            FeatureMissing: `features.sql` is ``False``.
            StoreReadOnly: It takes no writes now.
        """
        ...

    async def held(self, slot: Slot, key: str, *, after: int = 0, limit: int = 1) -> Sequence[Held]:
        """Return the first held records of a key with an id above `after`, by id."""
        ...

    async def due(self, slot: Slot, *, after: str = "", limit: int = 1_000) -> Sequence[HeldKey]:
        """Return the keys with held records, by key, from the one behind `after`."""
        ...

    async def parked(
        self,
        subscription: str | None = None,
        *,
        after: int = 0,
        limit: int = 1_000,
        key: str | None = None,
        type: str | None = None,  # noqa: A002 the word that it is
        error: str | None = None,
    ) -> Sequence[ParkedKey]:
        """Return keys with held records, ascending by the id of their first record, from the one behind `after`.

        Args:
            subscription: Whose; ``None``: of all.
            after: The id of the first record of the last key seen.
            limit: At most so many.
            key: Only this one.
            type: Only keys whose first held record is of this type.
            error: Only keys whose first held record failed with an error that contains this text.
        """
        ...

    async def request(
        self,
        subscription: str,
        key: str | None,
        action: Literal["redrive", "skip"],
        *,
        type: str | None = None,  # noqa: A002 the word that it is
        error: str | None = None,
        among: Sequence[int] | None = None,
    ) -> int:
        """File a request to redrive a key's queue or skip its first record, and ring the bell.

        Args:
            subscription: Whose.
            key: ``None`` means each parked key.
            action: What to do.
            type: Only keys whose first held record is of this type; ``None``: of any.
            error: Only keys whose first held record failed with an error that contains this text; ``None``: with any.
            among: Only keys whose first held record has one of these ids: what somebody has looked at, and nothing that came since.

        Returns:
            How many keys are asked for; 0 where none matches.
        """
        ...

    async def requests(self, slots: Sequence[Slot]) -> Sequence[Request]:
        """Return what is asked of these slots, by id."""
        ...

    async def answer(self, lease: Lease, request: Request) -> None:
        """Carry out a request: redrive makes the first record due now with no attempts; skip moves it to the list. Then forget it.

        Raises:
            LeaseLost: Another process owns the slot. Nothing was changed.
        """
        ...

    async def skipped(self, subscription: str | None = None, *, after: int = 0, limit: int = 1_000) -> Sequence[Skipped]:
        """Return what was passed over, by id, from the one behind `after`."""
        ...

    async def forget_skipped(self, subscription: str | None, *, through: int) -> int:
        """Remove what was passed over from the list, up to this id; return how many."""
        ...

    async def outbox(self, *, after: int, limit: int) -> Sequence[OutboxRow]:
        """Return rows with an id above `after`, by id, those refused and those behind them left out."""
        ...

    async def stage(self, connection: object, emits: Sequence[Emitted]) -> None:
        """Put events into the transaction of a connection that is awaited: they are sent once that is committed.

        Args:
            connection: To the database that the store is in: whose transaction it is begins and ends it.
            emits: What; of one key they are sent in this order.

        Raises:
            StoreError: It is no such connection, or in no transaction. Nothing may be committed with it.
            FeatureMissing: `features.within` is ``False``.
        """
        ...

    def stage_blocking(self, connection: object, emits: Sequence[Emitted]) -> None:
        """Do the same with a connection that blocks; called from any thread. Raises as `stage`."""
        ...

    async def number(self, lease: Lease, rows: Sequence[int], *, done: Sequence[int] = ()) -> Sequence[OutboxRow]:
        """Give the rows their numbers, per topic and partition in the order of their ids; remove those in `done`. One commit.

        A row that has a number keeps it. Numbers are consecutive and never given twice within an incarnation. A row that the log holds
        from an earlier one (`Incarnation.sent`) gets none: it is removed and left out.

        Raises:
            LeaseLost: Another process is the relay. Nothing was changed.
        """
        ...

    async def refuse(self, lease: Lease, row: int, error: str) -> None:
        """Keep a row that the log refused for good; later rows of its topic and key wait behind it.

        Raises:
            LeaseLost: Another process is the relay. Nothing was changed.
        """
        ...

    async def issued(self) -> Mapping[TopicPartition, int]:
        """Return the highest number given in each topic partition."""
        ...

    async def acknowledged(self) -> Mapping[TopicPartition, int]:
        """Return the highest number in each topic partition that was given and whose row is gone: the log has said that it is stored."""
        ...

    async def landmarks(self) -> Sequence[Landmark]:
        """Return what was kept last, by topic and partition."""
        ...

    async def keep_landmarks(self, landmarks: Sequence[Landmark]) -> None:
        """Remember records of the log, one per topic partition. The log has to hold them as long as retention has not deleted them."""
        ...

    async def sent_before(self) -> Sequence[tuple[str, str]]:
        """Return topic and id of the events whose rows are still to come and are not to be sent, as `reincarnate` was told."""
        ...

    async def reincarnate(self, new: Incarnation) -> None:
        """Begin a new incarnation, in one transaction.

        The relay's numbers start anew: none is given, and no row of the outbox has one. Rows whose event is in `new.sent`, those of today
        and those to come, are not sent: `number` removes the first of each and returns it no more. Leases, members and attempts are
        forgotten, so that nothing that a former process still has in hand is committed; the landmarks are those of `new`. State and held
        records stay.

        Raises:
            CommandRefused: A live member works on the store, or the number is not above that of the last one. Nothing was changed.
        """
        ...

    async def start_again(self, again: Again, reset: Callable[[Section], Awaitable[None]] | None = None) -> int:
        """Have a subscription handle events again, in one transaction; return its generation from then on.

        Whoever works on the subscription is fenced: nothing of what is in flight is committed. Records behind `again.after` that are held
        are forgotten, since they are handled again. Of a replay, the state of the old generation is shown to nobody any more, and `collect`
        removes it.

        Args:
            again: What.
            reset: Runs statements of the app's own in the same transaction; what it raises changes nothing.

        Raises:
            CommandRefused: The subscription is not stored, or stands before where it is to go back to. Nothing was changed.
        """
        ...

    async def collect(self, *, limit: int = 1_000) -> int:
        """Remove up to so many rows of state of former generations; return how many were there."""
        ...

    async def status(self) -> StoreStatus:
        """Return where the app stands."""
        ...

    async def wait(self, seconds: float) -> None:
        """Wait until any process may have changed the store since the last `wait` of this one returned; at most `seconds`."""
        ...

    async def verify(self) -> Sequence[str]:
        """Check everything stored; return what is wrong, a line each."""
        ...

    async def backup(self, target: Path, *, progress: Callable[[int, int], None] | None = None, check: bool = True) -> None:
        """Copy everything into one new file, as of one moment, while all others go on. For the rest, see `Log.backup`."""
        ...

    async def aclose(self) -> None:
        """Leave, finish what was accepted, let go of everything. Idempotent."""
        ...


class Section(Protocol):
    """One transaction of statements and units on a store, in the order of the calls. Nobody else commits while it is open.

    Statements may touch the app's own tables and nothing of the store's. A piece of it can be taken back (`undo`) without the rest.
    """

    @property
    def has_ended(self) -> bool:
        """It has ended by itself, and nothing of it is stored: its owner took too long, or a statement ended the transaction."""
        ...

    async def mark(self, *, within_s: float) -> None:
        """Begin a piece, which has so many seconds of real time. A piece that takes longer ends the whole section: nothing is stored."""
        ...

    async def execute(self, query: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        """Run a statement of the piece and return its rows. One that raises has changed nothing; nor have others of the same text.

        Args:
            query: The statement, with `?` for the parameters; several are divided by semicolons.
            parameters: None, int, float, str or bytes each.

        Raises:
            SqlRefused: It touches what is the store's own, or is no statement of the piece: transactions, ATTACH, PRAGMA. What the piece
                did before stands, unless the section `has_ended` with it.
            SqlFailed: The database refused it. What the piece did before stands.
            SqlTimeout: The piece took too long: undo it, unless the section `has_ended` with it.
        """
        ...

    async def keep(self) -> None:
        """End a piece. What it did is stored, if the section is committed."""
        ...

    async def read(self, keys: Sequence[StateKey]) -> Sequence[Versioned]:
        """Return rows of state as the units applied so far leave them, in the order of `keys`."""
        ...

    async def scan(self, state: str, prefix: str) -> Sequence[tuple[str, Versioned]]:
        """Return the rows under a prefix, as `Store.scan` does, as the units applied so far leave them."""
        ...

    async def undo(self) -> None:
        """End a piece and take back what was done since `mark`, units included."""
        ...

    async def apply(
        self, units: Sequence[Unit], leases: Sequence[Lease], progress: Sequence[tuple[Slot, Progress]] = ()
    ) -> Sequence[Outcome]:
        """Apply units as `Store.commit` does, inside the transaction."""
        ...

    async def commit(self) -> None:
        """Commit all of it.

        Raises:
            StoreReadOnly: Nothing was stored.
            StoreError: The outcome is unknown.
        """
        ...

    async def roll_back(self) -> None:
        """End it and store nothing. Idempotent, also behind `commit`."""
        ...


def relay_producer(identity: UUID, incarnation: int) -> str:
    """Return the producer name of a store's relay: never the app's name, so that a new store is a new producer."""
    return f"relay-{identity.hex}-{incarnation}"


def relay_of(producer: str) -> tuple[UUID, int] | None:
    """Return the store and the incarnation that a producer name stands for; ``None`` where it is no relay's."""
    found = _RELAY_NAME.fullmatch(producer)
    return None if found is None else (UUID(hex=found[1]), int(found[2]))
