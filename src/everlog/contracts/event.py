"""What users declare: an `Event`, and what may be published at all."""

from __future__ import annotations

from dataclasses import Field
from typing import Any, ClassVar, Protocol, TypeVar

import msgspec
from typing_extensions import dataclass_transform


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Event(msgspec.Struct, frozen=True):
    """The base of an event: a frozen struct whose fields are its contract.

    Declare one per fact, in the past tense, and give it to a topic with `topic.event("name/version")`.
    """


class DataclassEvent(Protocol):
    """A dataclass that was given to a topic."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


class ModelEvent(Protocol):
    """A pydantic model that was given to a topic."""

    __pydantic_fields__: ClassVar[dict[str, Any]]


AnyEvent = Event | DataclassEvent | ModelEvent
"""What can be published: an instance of a class that a topic has."""

E = TypeVar("E", bound=AnyEvent)
"""One type of event."""
E_co = TypeVar("E_co", bound=AnyEvent, covariant=True)
