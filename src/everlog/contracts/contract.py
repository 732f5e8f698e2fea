"""A contract: one event type on the wire, the class that carries it, and the check that every event of it passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from decimal import InvalidOperation
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

import msgspec

from everlog.contracts.declaration import check_class
from everlog.contracts.difference import find_fault
from everlog.contracts.schema import canonical_schema, fingerprint
from everlog.errors import DeclarationError, EventRefused, EventTooLarge, KeyRefused
from everlog.key import canonical_text
from everlog.record import MAX_DATA_BYTES
from everlog.topics import unnamed

if TYPE_CHECKING:
    from everlog.contracts.topic import Topic

T = TypeVar("T")

_ATTRIBUTE: Final = "__everlog_contract__"
_encode: Final = msgspec.json.Encoder().encode


class Contract(Generic[T]):
    """What is promised of the events of one type and version."""

    def __init__(self, topic: Topic, name: str, cls: type[T]) -> None:
        self.topic = topic
        self.name = name
        self.cls = cls
        self.named_schema = self._prepare(cls)
        """Its JSON Schema with the names of the code's classes, for documents."""
        self.schema = unnamed(self.named_schema)
        """The same without them: what the log keeps, and what is compared."""
        self.fingerprint = fingerprint(self.schema)
        self._key = attrgetter(topic.key) if topic.key is not None else None

    def _prepare(self, cls: type[T]) -> bytes:
        """Check the class, make what writes and reads its events, and return its schema."""
        check_class(cls, self.name, self.topic.key)
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(cls)
        self._list_decoder: msgspec.json.Decoder[list[T]] = msgspec.json.Decoder(list[cls])  # type: ignore[valid-type]  # a class known at run time
        return canonical_schema(cls)

    def field_names(self) -> Sequence[str] | None:
        """Return the names of the fields as they stand in JSON; ``None`` where it takes any."""
        if issubclass(self.cls, msgspec.Struct):
            tag = self.cls.__struct_config__.tag_field
            return [*self.cls.__struct_encode_fields__, *([tag] if tag is not None else [])]
        return [field.name for field in dataclasses.fields(cast("Any", self.cls))]

    def encode(self, events: Sequence[T]) -> list[bytes]:
        """Return each event as JSON, after proof that reading it back gives an equal event.

        The proof is encode, decode, compare, on the whole list at once: encoding alone turns NaN into null and lets a UUID, a date,
        an enum or a Decimal pass as text.

        Raises:
            EventRefused: One of them breaks the contract; names the field.
            EventTooLarge: One has more than 1,000,000 bytes.
        """
        sent = list(events)
        try:
            slices = [_encode(event) for event in sent]
            body = b"[" + b",".join(slices) + b"]"
            is_proved = self._list_decoder.decode(body) == sent
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError, InvalidOperation) as error:
            raise self._fault(sent) from error
        if not is_proved:
            raise self._fault(sent)
        if len(body) > MAX_DATA_BYTES:
            for data in slices:
                self._check_size(data)
        return slices

    def encode_one(self, event: T) -> bytes:
        """Return one event as JSON, after the same proof. Raises as `encode`."""
        try:
            data = _encode(event)
            is_proved = self._decoder.decode(data) == event
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError, InvalidOperation) as error:
            raise self._fault([event]) from error
        if not is_proved:
            raise self._fault([event])
        self._check_size(data)
        return data

    def _check_size(self, data: bytes) -> None:
        if len(data) > MAX_DATA_BYTES:
            raise EventTooLarge(
                f"{self.name!r}: expected at most {MAX_DATA_BYTES:,} bytes of JSON, found {len(data):,}: "
                f"store the bulk elsewhere and publish where it is"
            )

    def _fault(self, events: Sequence[T]) -> EventRefused:
        for index, event in enumerate(events):
            fault = find_fault(event, self._decoder)
            if fault is not None:
                which = "" if len(events) == 1 else f" (event {index + 1} of {len(events)})"
                return EventRefused(f"{self.name!r}{which}: {fault}")
        return EventRefused(f"{self.name!r}: the events cannot be written as JSON and read back")

    def keys(self, events: Sequence[T]) -> list[str | None]:
        """Return each event's key as canonical text; ``None`` for each where the topic has no key.

        Raises:
            KeyRefused: A key field holds `None`, or what cannot be a key.
        """
        if self._key is None:
            return [None] * len(events)
        try:
            return [
                value if type(value) is str and value.isascii() else canonical_text(value) for value in map(self._key, events)
            ]
        except KeyRefused as error:
            raise KeyRefused(f"{self.name!r}, key field {self.topic.key!r}: {error}") from error

    def decode(self, data: bytes) -> T:
        """Return the event that one record's data holds.

        Raises:
            EventRefused: The bytes break the contract; names the field.
        """
        try:
            return self._decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise EventRefused(f"{self.name!r}: the stored bytes break the contract: {error}") from error

    def decode_list(self, array: bytes) -> list[T]:
        """Return the events of a JSON array of them, in one call.

        Raises:
            EventRefused: One of them breaks the contract.
        """
        try:
            return self._list_decoder.decode(array)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise EventRefused(f"{self.name!r}: stored bytes break the contract: {error}") from error


def bind(cls: type[T], contract: Contract[T]) -> None:
    """Let a class know its contract.

    Raises:
        DeclarationError: It has one already.
    """
    if _ATTRIBUTE in cls.__dict__:
        known = cast("Contract[Any]", cls.__dict__[_ATTRIBUTE])
        raise DeclarationError(
            f"{cls.__name__} is {known.name!r} of topic {known.topic.name!r} already: declare a class of its own for {contract.name!r}"
        )
    setattr(cls, _ATTRIBUTE, contract)


def contract_of(cls: type[T]) -> Contract[T]:
    """Return the contract of an event class.

    Raises:
        EventRefused: It was given to no topic.
    """
    found = cast("object", cls)  # users' code is checked by no type checker, perhaps
    contract = found.__dict__.get(_ATTRIBUTE) if isinstance(found, type) else None
    if contract is None:
        shown = found.__name__ if isinstance(found, type) else repr(found)
        raise EventRefused(
            f'{shown} has no contract: write @topic.event("name/1") above its class, where topic = Topic("…", key="…")'
        )
    return cast("Contract[T]", contract)
