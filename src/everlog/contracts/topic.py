"""A topic as users declare it: its name, its key, and the types that it holds."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, cast

from everlog.contracts.contract import Contract, bind
from everlog.contracts.event import E
from everlog.errors import DeclarationError
from everlog.log import TopicSpec
from everlog.topics import check_limits

_TOPIC_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,248}")
_TYPE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}/[1-9][0-9]{0,8}")
MAX_PARTITIONS: Final = 4_096


class Topic:
    """A named part of the log, shared by all services that import it. A declaration: no I/O.

    Args:
        name: Its name in the log, for ever.
        key: The field that orders events: those with equal keys are handled one after the other, in order. Every type of the
            topic has it. ``None``: no order, and no two events wait for each other.
        partitions: How many processes of one subscription can share it at most. Changed only by moving to another topic.
        keep_s: Delete events older than this; ``None`` keeps them. Whether somebody has handled them makes no difference.
        keep_bytes: Delete the oldest events of a partition beyond this; ``None`` keeps them.
        keep_newest: Never delete the newest event of a key. For topics of few keys, whose newest event says how things stand.
        streams: Each key is a stream that takes conditional appends.

    Raises:
        DeclarationError: The name is none, or a number is out of range.
    """

    def __init__(
        self,
        name: str,
        *,
        key: str | None,
        partitions: int = 8,
        keep_s: float | None = None,
        keep_bytes: int | None = None,
        keep_newest: bool = False,
        streams: bool = False,
    ) -> None:
        if not _TOPIC_NAME.fullmatch(name):
            raise DeclarationError(
                f"expected a topic name of letters, digits, dots, dashes and underscores, at most 249, found {name!r}"
            )
        if not 1 <= partitions <= MAX_PARTITIONS:
            raise DeclarationError(f"topic {name!r}: expected 1 to {MAX_PARTITIONS} partitions, found {partitions}")
        try:
            check_limits(keep_s, keep_bytes)
        except ValueError as error:
            raise DeclarationError(f"topic {name!r}: {error}") from error
        if keep_newest and key is None:
            raise DeclarationError(
                f"topic {name!r}: keep_newest keeps the newest event of each key, and it has none: give it a key"
            )
        self.name = name
        self.key = key
        self.partitions = partitions
        self.keep_s = keep_s
        self.keep_bytes = keep_bytes
        self.keep_newest = keep_newest
        self.streams = streams
        self._contracts: dict[str, Contract[Any]] = {}

    def __repr__(self) -> str:
        return f"Topic({self.name!r}, key={self.key!r})"

    @property
    def contracts(self) -> Mapping[str, Contract[Any]]:
        """The contracts of its types, by their names on the wire."""
        return MappingProxyType(self._contracts)

    def event(self, type_name: str) -> Callable[[type[E]], type[E]]:
        """Return a decorator that makes a class the carrier of events of one type. It returns the class unchanged.

        Args:
            type_name: Name and version as on the wire: ``"shop.order_placed/1"``. A changed shape is a new version.

        Raises:
            DeclarationError: The name has no version, is taken, or the class cannot carry events.
        """
        if not _TYPE_NAME.fullmatch(type_name):
            raise DeclarationError(f"expected a type with its version, like 'shop.order_placed/1', found {type_name!r}")

        def declare(cls: type[E]) -> type[E]:
            if type_name in self._contracts:
                raise DeclarationError(
                    f"{type_name!r} is {self._contracts[type_name].cls.__name__} in topic {self.name!r} already: "
                    f"give {cls.__name__} the next version or another name"
                )
            contract = _contract(self, type_name, cls)
            bind(cls, contract)
            self._contracts[type_name] = contract
            return cls

        return declare

    def spec(self) -> TopicSpec:
        """Return what a log stores of it."""
        return TopicSpec(
            self.name,
            self.key,
            self.partitions,
            keep_s=self.keep_s,
            keep_bytes=self.keep_bytes,
            keep_newest=self.keep_newest,
            streams=self.streams,
            types={name: contract.schema for name, contract in self._contracts.items()},
        )


def _contract(topic: Topic, name: str, cls: type[E]) -> Contract[E]:
    if "pydantic" in sys.modules:  # else no class is a model of it
        from everlog.contracts.models import ModelContract, is_model

        if is_model(cls):
            return cast("Contract[E]", ModelContract(topic, name, cls))
    return Contract(topic, name, cls)
