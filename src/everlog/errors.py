"""Every error that Everlog raises, in one tree.

EverlogError
├── DeclarationError           a topic, event, state or handler is declared wrongly (raised at import)
├── StartRefused               `run` or `connect` will not start; nothing was changed
│   ├── UnknownAdapter         no adapter answers to the scheme of a URL
│   ├── FeatureMissing         the log or the store cannot honour what the app needs
│   ├── TopicMismatch          the log holds the topic with other settings
│   ├── SchemaMismatch         the log holds another schema under the same type and version
│   ├── SubscriptionMissing    the store holds a subscription that the code no longer has
│   ├── StartUndecided         much history is waiting and nobody said whether to handle it
│   ├── HistoryGone            retention deleted events before they were handled
│   ├── WrongLog               the progress in the store belongs to another log
│   └── StoreReplaced          the store is older than, or another than, what the log remembers
├── EventRefused               an event breaks its contract; nothing was stored
│   ├── KeyRefused             the key field holds what cannot be a key
│   ├── EventTooLarge          more than 1,000,000 bytes of data, or too many events in one call
│   └── NotInHandler           `publish` was called where `return` or `tx.publish` belongs
├── PublishUnknown             the answer of the log was lost; `retry()` is safe
├── LogError                   the log did not do what it was asked
│   ├── TopicMissing           the topic does not exist
│   ├── LogReadOnly            no room or no permission; nothing was stored and reading goes on
│   ├── LogUnreachable         the log's server does not answer; nothing is lost
│   ├── RecordsGone            retention deleted what a reader was to read next
│   ├── SequenceReused         a producer sent other bytes under a number that is taken
│   ├── IdempotencyKeyReused   another event was stored under the key
│   └── StreamConflict         the stream has moved on since it was read
├── StoreError                 the store did not do what it was asked
│   ├── StoreReadOnly          no room or no permission; nothing was stored
│   ├── StoreUnreachable       the store's server does not answer; nothing is lost
│   └── LeaseLost              another process owns the slot now; nothing was stored
├── FileError                  a file of the embedded log or store cannot be used
│   ├── FileStrange            it is not a file of Everlog, or not of the kind asked for
│   ├── FileNewer              a newer Everlog wrote it
│   ├── FileDamaged            bytes are missing or changed; nothing was skipped in silence
│   ├── FileUnreadable         its disk did not answer; nothing is lost
│   └── FilePlace              the place cannot hold it: a network file system, a missing permission, a fork
├── PositionRefused            a position token is damaged or belongs to another log
├── TxClosed                   `tx` was used after its handler had ended
├── TxRefused                  a handler asked `tx` for what it may not do
├── SqlError                   `tx.sql` did not do what it was asked; nothing of the handler is stored if it lets this through
│   ├── SqlRefused             a statement that is not the handler's to run
│   ├── SqlFailed              the database refused the statement
│   └── SqlTimeout             the handler kept the store for itself for too long
├── HandlerTimeout             a handler ran past its time limit and was cancelled
├── HandlerKilled              a handler took its process down with it
├── HandlerExited              a handler called `sys.exit`, which ends it and not the process
├── PoisonAt                   raised by a batch handler: which of its events is the bad one
├── HandlerCancelled           a handler awaited something that was cancelled
├── CommandRefused             a command line asked for what cannot be done
│   └── ModuleRefused          what it names as MODULE:APP is not there, is no app, or cannot be imported
└── Closed                     a client, log or store was used after it was closed
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar, Final


class EverlogError(Exception):
    """The root of the tree. Its text says what was expected, what was found and what to do."""

    retryable: ClassVar[bool] = False
    """The same call may succeed later without a change to it."""


class DeclarationError(EverlogError):
    """A topic, event, state or handler is declared wrongly. Raised at import, before any I/O."""


class StartRefused(EverlogError):
    """The app will not start. Nothing was changed."""


class UnknownAdapter(StartRefused):
    """No adapter answers to the scheme of a URL."""

    def __init__(self, port: str, url_shown: str, known: Sequence[str]) -> None:
        super().__init__(
            f"no {port} adapter for {url_shown!r}: expected a URL that starts with one of "
            f"{', '.join(name + ':' for name in sorted(known))}"
        )


class FeatureMissing(StartRefused):
    """The log or the store cannot honour what the app needs."""

    def __init__(self, what: str, *, adapter: str, instead: str) -> None:
        super().__init__(f"{what} is not offered by {adapter}: {instead}")


class TopicMismatch(StartRefused):
    """The log holds the topic with other settings than the code declares."""

    def __init__(self, topic: str, setting: str, *, stored: object, declared: object) -> None:
        if setting in ("keep_s", "keep_bytes"):
            wanted = "none" if declared is None else declared
            instead = f"change what the log keeps with `everlog topics set {topic} --{setting.replace('_', '-')} {wanted}`"
        else:
            instead = "give the topic another name"
        super().__init__(
            f"topic {topic!r} has {setting}={stored!r} in the log, and the code declares {declared!r}: "
            f"declare {setting}={stored!r}, or {instead}"
        )


class SchemaMismatch(StartRefused):
    """The log holds another schema under the same type and version."""

    def __init__(self, type_name: str, topic: str, difference: str) -> None:
        super().__init__(
            f"{type_name!r} has another schema in topic {topic!r} than in the code ({difference}): "
            f"what is published keeps its shape, so declare the new shape under the next version"
        )


class SubscriptionMissing(StartRefused):
    """The store holds a subscription that the code no longer has."""

    def __init__(self, app: str, subscription: str) -> None:
        super().__init__(
            f"the store of app {app!r} holds progress of subscription {subscription!r}, which the code does not "
            f"declare: declare it again, say renamed_from={subscription!r} where it has another name now, or drop what is stored with "
            f"`everlog retire {app} {subscription}`"
        )


class StartUndecided(StartRefused):
    """Much history is waiting for a new subscription, or for a new type of one, and nobody said what to do with it."""


class HistoryGone(StartRefused):
    """Retention deleted events before a subscription handled them."""


class WrongLog(StartRefused):
    """The progress in the store belongs to another log, or lies beyond the end of this one."""


class StoreReplaced(StartRefused):
    """The store is older than what the log remembers of it, or another one than the app used before."""


class EventRefused(EverlogError):
    """An event breaks its contract. Nothing was stored."""


class KeyRefused(EventRefused):
    """The key field holds what cannot be a key."""


class EventTooLarge(EventRefused):
    """More than 1,000,000 bytes of data in one event, or more events than one call takes."""


class NotInHandler(EventRefused):
    """`publish` was called inside a handler, where an event belongs into the unit of the handler."""


class PublishUnknown(EverlogError):
    """The log did not answer in time: the events are stored or not, and nobody can say which.

    `await error.retry()` sends them again under the same numbers, so that they are stored once; `timeout_s=` gives it another time.
    """

    retryable = True

    def __init__(self, message: str, retry: Callable[..., Awaitable[Any]]) -> None:
        super().__init__(message)
        self.retry = retry


class LogError(EverlogError):
    """The log did not do what it was asked."""


class TopicMissing(LogError):
    """The topic does not exist in this log."""

    def __init__(self, topic: str) -> None:
        super().__init__(f"topic {topic!r} does not exist in this log: publish to it once, or run an app that handles it")


class LogReadOnly(LogError):
    """No room or no permission. Nothing was stored; reading goes on."""

    retryable = True


class LogUnreachable(LogError):
    """It could not be read just now: the log's server does not answer. Nothing is lost."""

    retryable = True


class RecordsGone(LogError):
    """Retention deleted what a reader was to read next. It stands where it stood, and passed over nothing.

    Attributes:
        topic, partition: Where.
        after: The offset behind which it stands.
        first: The offset before the oldest record that is kept.
        oldest: The token of a position to go on from, with the oldest that is kept; ``None`` from a reader of the log itself.
    """

    def __init__(self, topic: str, partition: int, *, after: int, first: int, oldest: str | None = None) -> None:
        go_on = "begin at the oldest record that is kept" if oldest is None else f"the oldest position that is kept is {oldest}"
        super().__init__(
            f"{topic}/{partition}: expected the record behind offset {after}, and retention has deleted everything up to offset {first}: "
            f"{go_on}; `everlog topics set {topic}` changes how much is kept"
        )
        self.topic = topic
        self.partition = partition
        self.after = after
        self.first = first
        self.oldest = oldest


class SequenceReused(LogError):
    """A producer sent other bytes under a number that is already taken."""


class IdempotencyKeyReused(LogError):
    """Another event was stored under the same idempotency key. Nothing was stored."""


class StreamConflict(LogError):
    """The stream has moved on since it was read. Nothing was stored."""


class StoreError(EverlogError):
    """The store did not do what it was asked."""


class StoreReadOnly(StoreError):
    """No room or no permission. Nothing was stored; reading goes on."""

    retryable = True


class StoreUnreachable(StoreError):
    """It could not be read just now: the store's server does not answer. Nothing is lost."""

    retryable = True


class LeaseLost(StoreError):
    """Another process owns the slot now. Nothing was stored."""


class FileError(EverlogError):
    """A file of the embedded log or store cannot be used."""


class FileStrange(FileError):
    """It is not a file of Everlog, or not of the kind asked for. It was not touched."""


class FileNewer(FileError):
    """A newer Everlog wrote it. It was not touched."""


class FileDamaged(FileError):
    """Bytes are missing or changed. Nothing was skipped in silence."""


class FileUnreadable(FileError):
    """It could not be read just now: its disk did not answer. Nothing is lost."""

    retryable = True


UNREADABLE: Final = (FileUnreadable, LogUnreachable, StoreUnreachable)
"""What could not be read just now, and is asked for again."""


class FilePlace(FileError):
    """The place cannot hold it: a network file system, a missing folder or permission, a fork of a process that had it open."""


class PositionRefused(EverlogError):
    """A position token is damaged or belongs to another log."""


class TxClosed(EverlogError):
    """`tx` was used after its handler had ended; nothing of that use is stored."""


class TxRefused(EverlogError):
    """A handler asked `tx` for what it may not do."""


class SqlError(EverlogError):
    """`tx.sql` did not do what it was asked. A handler that lets this through fails, and nothing of it is stored."""


class SqlRefused(SqlError):
    """A statement that is not the handler's to run: it was not run."""


class SqlFailed(SqlError):
    """The database refused the statement. What the handler did before stands, and it may go on."""


class SqlTimeout(SqlError):
    """The handler kept the store for itself for too long. All that it did is taken back."""


class HandlerTimeout(EverlogError):
    """A handler ran past its time limit and was cancelled. It counts as a failed attempt."""

    def __init__(self, handler: str, limit_s: float) -> None:
        super().__init__(
            f"{handler} ran past its time limit of {limit_s:g} s and was cancelled: make it faster, or raise Delivery(time_limit_s=…)"
        )


class HandlerKilled(EverlogError):
    """A handler took its process down with it: it exited, crashed, ate all memory, or could not be stopped. It counts as a failed attempt."""

    def __init__(self, handler: str) -> None:
        super().__init__(
            f"the process ended while nothing but {handler} ran, or because it could not be stopped: see the log of that process, "
            f"and mend the handler before you redrive its event"
        )


class HandlerExited(EverlogError):
    """A handler called `sys.exit`, which ends it and not the process. It counts as a failed attempt."""

    def __init__(self, handler: str, code: object) -> None:
        super().__init__(f"{handler} called sys.exit({code!r}): raise an error instead; the process goes on")


class PoisonAt(EverlogError):
    """Raised by a batch handler to say which event is the bad one, so that nobody has to search for it.

    Args:
        index: Its place in the batch, from 0.
    """

    def __init__(self, index: int, message: str = "") -> None:
        super().__init__(message or f"event {index} of the batch")
        self.index = index


class HandlerCancelled(EverlogError):
    """A handler awaited something that was cancelled. It counts as a failed attempt."""

    def __init__(self, handler: str) -> None:
        super().__init__(f"{handler} awaited something that was cancelled: catch asyncio.CancelledError where that is expected")


class CommandRefused(EverlogError):
    """A command line asked for what cannot be done."""


class ModuleRefused(CommandRefused):
    """What a command line names as `MODULE:APP` is not there, is no app, or cannot be imported."""


class Closed(EverlogError):
    """A client, log or store was used after it was closed."""
